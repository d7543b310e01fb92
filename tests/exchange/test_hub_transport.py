"""The hub fetches an update while it is sent, and shows no model before its own copy is safe."""

from __future__ import annotations

import threading

import pytest
from chunked_updates import PATIENCE_S, STUDY, filled, filled_update, received_chunks, wait_until

from medfed.errors import RunError
from medfed.exchange import _site_answers
from medfed.exchange._manifest import Manifest, encode_sealed
from medfed.exchange._object_store import chunk_name
from medfed.wire import encoding as wire
from medfed.wire.signing import HUB, Unsigned
from medfed.wire.update import GlobalModel
from medfed.wire.weights import digest


def test_the_hub_fetches_an_update_while_its_site_sends_it(hub_and_north, tmp_path, sender_waits):
    hub, north = hub_and_north
    sending = threading.Thread(target=lambda: north.send(filled_update(1.5)), daemon=True)
    sending.start()
    arrived: list = []
    collecting = threading.Thread(
        target=lambda: arrived.extend(hub.collect(1, ["north"], PATIENCE_S)), daemon=True
    )
    collecting.start()
    # The window of the folder: some of the ten may not have begun.
    wait_until(lambda: received_chunks(tmp_path / "hub/exchange/spool", "north") >= 6)
    assert not arrived
    sender_waits.set()
    sending.join(PATIENCE_S)
    collecting.join(PATIENCE_S)
    (received,) = arrived
    assert digest(received.update.delta.minuend) == digest(filled(1.5))


def test_announced_chunks_do_not_count_where_the_manifest_names_others(hub_and_north, tmp_path):
    hub, north = hub_and_north
    other = north._measure(filled_update(7.0))
    data = wire.encode_update(filled_update(7.0), STUDY)
    for index, (first, length) in enumerate(other.spans):
        name = chunk_name(f"up/{STUDY[:16]}/north/r00001", index, other.chunks[index])
        north._store.put(name, data[first : first + length])
    north._store.put(north._objects.site_object("north", "announced"), encode_sealed(other, Unsigned()))
    assert list(hub.collect(1, ["north"], 0.3)) == []
    assert received_chunks(tmp_path / "hub/exchange/spool", "north") == len(other.chunks)
    north.send(filled_update(1.5))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert digest(received.update.delta.minuend) == digest(filled(1.5))


def test_no_site_sees_a_model_before_the_hubs_own_copy_is_safe(folder_exchange, tmp_path):
    hub = folder_exchange.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    seen = []

    def check_before_now() -> None:
        data = hub._objects.get_hub_object("current")
        seen.append(hub._objects.open_manifest(data, HUB).round)
        raise RunError("its checkpoint could not be written")

    with pytest.raises(RunError, match="its checkpoint could not be written"):
        hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY), check_before_now)
    assert seen == [0]
    north = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    assert north.fetch("north", 0).round == 0
    north.close()
    hub.close()


@pytest.mark.slow
def test_a_hub_finds_what_it_published_after_its_folder_was_backed_up(folder_exchange, tmp_path):
    hub = folder_exchange.open_hub(STUDY, tmp_path / "hub")
    assert hub.newest_published(0) is None
    hub.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    hub.disconnect()
    again = folder_exchange.open_hub(STUDY, tmp_path / "hub")
    assert again.newest_published(1) is None
    newest = again.newest_published(0)
    assert (newest.round, digest(newest.weights)) == (1, digest(filled(1.0)))
    again.disconnect()
    other = folder_exchange.open_hub(STUDY, tmp_path / "another run")
    assert other.newest_published(0) is None
    other.disconnect()


def test_a_hub_that_is_behind_its_sites_says_so(hub_and_north):
    hub, north = hub_and_north
    north.send(filled_update(1.5, round=3))
    (received,) = hub.collect(1, ["north"], 30)
    assert "'north', round 1: it has already sent an update for round 3 of this run" in str(received.error)
    assert "the hub's run folder is a back-up that is older than its sites" in str(received.error)
    assert received.bytes_up > 0
    # Told once: what it sends when the round has begun is waited for.
    assert list(hub.collect(2, ["north"], 0.3)) == []


def test_an_update_from_before_its_round_is_not_taken_when_the_round_comes(hub_and_north):
    """Nobody can have trained it from the round's model, which was not there."""
    hub, north = hub_and_north
    north.send(filled_update(1.5, round=3))
    assert len(list(hub.collect(1, ["north"], 30))) == 1
    hub.publish(GlobalModel(2, filled(1.0), study_digest=STUDY))
    (received,) = hub.collect(3, ["north"], 30)
    assert (received.update, received.bytes_up > 0) == (None, True)
    assert "'north', round 3: it was sent before the round began" in str(received.error)


def test_of_a_site_that_announces_ever_later_rounds_little_is_kept(monkeypatch):
    """A manifest may have 16 MiB, and each look at the store could find another one."""
    monkeypatch.setattr(_site_answers, "MAX_EARLY", 3)
    early, chunks = _site_answers.EarlyUpdates(), ["ab" * 32]

    def manifest(round: int, size: int = 5) -> Manifest:
        return Manifest("p", "update", STUDY, "run", "north", round, size, 10, chunks)

    for round in (9, 5, 7, 8, 6):
        early.add("north", manifest(round))
    early.add("north", manifest(5, size=6))  # the first one for a round counts
    early.add("south", manifest(9))
    assert [round for round in range(10) if early.has("north", manifest(round))] == [5, 6, 7]
    assert not early.has("north", manifest(5, size=6))
    assert early.has("south", manifest(9))
    kept = [digest for known in early._digests.values() for digest in known.values()]
    assert [len(one) for one in kept] == [32] * 4


HOSTILE = {
    "no UTF-8 in the proof": b'{"certificate": "\xff"}\n{}',
    "no UTF-8 in the text": b'{}\n{"is": "\xff"}',
    "too deep a proof": b"[" * 100_000 + b"\n{}",
    "too deep a text": b"{}\n" + b"[" * 100_000,
    "nothing": b"",
    "a line": b"\n",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_whatever_bytes_a_site_stores_the_hub_goes_on(hub_and_north, data):
    """Before any signature is checked: whoever can write to a share can store these."""
    hub, north = hub_and_north
    for what in ("announced", "heartbeat", "dropped_out"):
        north._store.put(north._objects.site_object("south", what), data)
    north._store.put(f"{north._objects.update_prefix('south', 1)}/m", data)
    north.send(filled_update(1.5))
    received = {one.site: one for one in hub.collect(1, ["north", "south"], 2)}
    assert digest(received["north"].update.delta.minuend) == digest(filled(1.5))
    assert "south" not in received or received["south"].update is None


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_whatever_bytes_a_site_stores_a_hub_without_rounds_goes_on(folder_exchange, tmp_path, data):
    hub = folder_exchange.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, filled(0.0), study_digest=STUDY, asynchronous=True))
    north = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    north.fetch("north", 0)
    for what in ("announced", "heartbeat", "dropped_out"):
        north._store.put(north._objects.site_object("south", what), data)
    north._store.put(f"{north._objects.update_prefix('south', 1)}/m", data)
    north.send(filled_update(1.5))
    received = {one.site: one for one in hub.collect_async(1, ["north", "south"], 1, 2)}
    assert digest(received["north"].update.delta.minuend) == digest(filled(1.5))
    assert "south" not in received or received["south"].update is None
    north.close()
    hub.close()


def test_what_is_refused_outside_a_round_reaches_the_audit_log_once(hub_and_north):
    hub, north = hub_and_north
    told: list[str] = []
    hub.on_refused(told.append)
    for what in ("heartbeat", "dropped_out"):
        north._store.put(north._objects.site_object("north", what), b"rubbish")
    for _ in range(3):
        hub._heartbeats.read(["north"])
        assert hub._answers.drop_out(1, "north") is None
    assert [text.partition(":")[0] for text in told] == [
        "a heartbeat of site 'north' is refused",
        "a drop-out of site 'north' is refused",
    ]
