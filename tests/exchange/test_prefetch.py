"""Announced objects are fetched while they are sent, but count only once a manifest names them."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
import torch

from medfed.errors import RunError
from medfed.exchange._chunks import download, prefetch
from medfed.exchange._manifest import PROTOCOL, Manifest, encode_sealed
from medfed.exchange._object_store import chunk_name
from medfed.exchange.folder import Folder, FolderStore
from medfed.wire import encoding as wire
from medfed.wire.signing import HUB, Unsigned
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, digest

STUDY = "6" * 64
PATIENCE_S = 60
# 4000 float32 values and their header make 17 chunks.
CHUNK_BYTES, VALUES = 1000, 4000


@pytest.fixture
def record(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setattr(FolderStore, "chunk_bytes", CHUNK_BYTES)
    return Folder(url=str(tmp_path / "share"), poll_s=0.01)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((VALUES,), value)}


def update(value: float, round: int = 1) -> Update:
    return Update("north", round, Difference(weights(value), weights(0.0)), 3)


def received_chunks(folder: Path, name: str) -> int:
    """Return how many chunks of the incoming object a party holds."""
    record = folder / f"{name}.got"
    return (record.stat().st_size - 32) // 4 if record.exists() else 0


def until(what) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def both(record, tmp_path):
    """A hub, and a site that has the untrained model."""
    hub = record.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, weights(0.0), study=STUDY))
    north = record.open_site(STUDY, "north", tmp_path / "north")
    north.fetch("north", 0)
    yield hub, north
    north.close()
    hub.close()


@pytest.fixture
def sending_stops(both, monkeypatch):
    """Return an event that the sender waits for after 10 chunks."""
    go_on = threading.Event()
    whole = FolderStore.put_many

    def slowly(self, objects, stored):
        def some():
            for number, piece in enumerate(objects):
                if number == 10:
                    assert go_on.wait(PATIENCE_S)
                yield piece

        return whole(self, some(), stored)

    monkeypatch.setattr(FolderStore, "put_many", slowly)
    yield go_on
    go_on.set()


def test_the_hub_fetches_an_update_while_its_site_sends_it(both, tmp_path, sending_stops):
    hub, north = both
    sending = threading.Thread(target=lambda: north.send(update(1.5)), daemon=True)
    sending.start()
    found: list = []
    collecting = threading.Thread(
        target=lambda: found.extend(hub.collect(1, ["north"], PATIENCE_S)), daemon=True
    )
    collecting.start()
    # The window of the folder: some of the ten may not have begun.
    until(lambda: received_chunks(tmp_path / "hub/exchange/spool", "north") >= 6)
    assert not found
    sending_stops.set()
    sending.join(PATIENCE_S)
    collecting.join(PATIENCE_S)
    (received,) = found
    assert digest(received.update.delta.minuend) == digest(weights(1.5))


def test_a_site_fetches_a_model_while_the_hub_publishes_it(both, tmp_path, sending_stops):
    hub, north = both
    found: list = []
    fetching = threading.Thread(target=lambda: found.append(north.fetch("north", 1)), daemon=True)
    fetching.start()
    publishing = threading.Thread(
        target=lambda: hub.publish(GlobalModel(1, weights(2.5), study=STUDY)), daemon=True
    )
    publishing.start()
    until(lambda: received_chunks(tmp_path / "north/exchange/inbox", "r00001") >= 6)
    assert not found
    sending_stops.set()
    publishing.join(PATIENCE_S)
    fetching.join(PATIENCE_S)
    assert digest(found[0].weights) == digest(weights(2.5))


def test_what_was_announced_does_not_count_where_the_manifest_names_something_else(both, tmp_path):
    hub, north = both
    other = north._measure(update(7.0))
    data = wire.encode_update(update(7.0), STUDY)
    for index, (first, length) in enumerate(other.spans):
        name = chunk_name(f"up/{STUDY[:16]}/north/r00001", index, other.chunks[index])
        north._store.put(name, data[first : first + length])
    north._store.put(north._objects.site_object("north", "announced"), encode_sealed(other, Unsigned()))
    assert list(hub.collect(1, ["north"], 0.3)) == []
    assert received_chunks(tmp_path / "hub/exchange/spool", "north") == len(other.chunks)
    north.send(update(1.5))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert digest(received.update.delta.minuend) == digest(weights(1.5))


def test_a_damaged_chunk_is_not_taken_ahead(tmp_path):
    store = FolderStore(str(tmp_path / "share"))
    chunks = [b"a" * 1000, b"b" * 1000, b"c" * 10]
    digests = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
    found = Manifest(PROTOCOL, "update", STUDY, "run", "north", 1, 2010, 1000, digests)
    names = [chunk_name("up/x", index, name) for index, name in enumerate(digests)]
    store.put(names[0], chunks[0])
    store.put(names[1], b"B" + chunks[1][1:])
    path = tmp_path / "spool" / "north.update"
    assert prefetch(store, found, "up/x", path)
    assert received_chunks(path.parent, "north") == 1
    assert not prefetch(store, found, "up/x", path)
    store.put(names[1], chunks[1])
    store.put(names[2], chunks[2])
    download(store, found, "up/x", path)
    assert path.read_bytes() == b"".join(chunks)
    store.close()


def test_no_site_sees_a_model_before_the_hubs_own_copy_is_safe(record, tmp_path):
    hub = record.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, weights(0.0), study=STUDY))
    seen = []

    def check_before_now() -> None:
        data = hub._objects.get_hub_object("current")
        seen.append(hub._objects.open_manifest(data, HUB).round)
        raise RunError("its checkpoint could not be written")

    with pytest.raises(RunError, match="its checkpoint could not be written"):
        hub.publish(GlobalModel(1, weights(1.0), study=STUDY), check_before_now)
    assert seen == [0]
    north = record.open_site(STUDY, "north", tmp_path / "north")
    assert north.fetch("north", 0).round == 0
    north.close()
    hub.close()


def test_the_receipt_is_the_manifest_that_is_sent(both):
    _, north = both
    sent = update(1.5)
    transmission = north.transmission(sent)
    north.send(sent)
    data = wire.encode_update(sent, STUDY)
    chunks = [
        hashlib.sha256(data[first : first + CHUNK_BYTES]).hexdigest()
        for first in range(0, len(data), CHUNK_BYTES)
    ]
    assert transmission.bytes == len(data)
    assert transmission.sha256 == hashlib.sha256("".join(chunks).encode()).hexdigest()
    stored = north._store.get(f"up/{STUDY[:16]}/north/r00001/m")
    assert north._objects.open_manifest(stored, "north").chunks == chunks


def test_a_folder_is_looked_at_often_at_first_and_at_most_every_poll_s(tmp_path, monkeypatch):
    store, waited = FolderStore(str(tmp_path), poll_s=0.5), []
    monkeypatch.setattr(store._closed, "wait", waited.append)
    for seconds in (0.0, 0.02, 1.0, 4.0, 600.0):
        store.wait(seconds)
    assert waited == pytest.approx([0.02, 0.02, 0.1, 0.4, 0.5])
    monkeypatch.undo()
    store.close()
