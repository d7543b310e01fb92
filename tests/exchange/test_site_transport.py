"""What a site sends from its own file: whole, once, and again when it was damaged or lost."""

from __future__ import annotations

import gc
import hashlib
import shutil
import threading
from pathlib import Path

import pytest
import torch
from chunked_updates import CHUNK_BYTES, PATIENCE_S, STUDY, filled, filled_update, received_chunks, wait_until

from medfed.errors import ExchangeError, WireError
from medfed.exchange import _site_transport
from medfed.exchange._chunks import OutgoingUpdate
from medfed.exchange._manifest import PROTOCOL, Manifest
from medfed.exchange.folder import Folder
from medfed.wire import encoding as wire
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, digest


def described(*chunks: bytes) -> Manifest:
    digests = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
    return Manifest(PROTOCOL, "update", STUDY, "run", "north", 1, sum(map(len, chunks)), 4, digests)


def written(folder, round: int, *chunks: bytes) -> OutgoingUpdate:
    going = OutgoingUpdate(folder, round)
    going.write(([chunk] for chunk in chunks), described(*chunks))
    going.wait_written()
    return going


def test_a_shorter_update_is_sent_without_the_end_of_a_longer_one_before(tmp_path):
    written(tmp_path, 1, b"aaaa", b"bbbb", b"cc")
    last, sent = threading.Event(), threading.Event()

    def pieces():
        yield [b"dd"]
        # Between the last chunk and the truncation, the sender can overtake the writer.
        last.set()
        assert sent.wait(PATIENCE_S)

    going = OutgoingUpdate(tmp_path, 2)
    going.write(pieces(), described(b"dd"))
    assert last.wait(PATIENCE_S)
    chunks = going.chunks("up/s/north/r00002")
    name, data = next(chunks)
    sent.set()
    assert data == [b"dd"]
    assert name == f"up/s/north/r00002/c/0-{hashlib.sha256(b'dd').hexdigest()[:32]}"
    assert list(chunks) == []
    assert (tmp_path / "update").read_bytes() == b"dd"


def test_a_restart_sends_the_same_chunks_and_not_those_that_arrived(tmp_path):
    first = written(tmp_path, 1, b"aaaa", b"bbbb", b"cc")
    every = list(first.chunks("p"))
    first.mark_stored(every[1][0])
    again = OutgoingUpdate(tmp_path, 1)
    assert again.complete
    assert again.intact()
    assert list(again.chunks("p")) == [every[0], every[2]]


def test_a_file_that_something_else_cut_off_is_not_sent(tmp_path):
    written(tmp_path, 1, b"aaaa", b"bbbb", b"cc")
    (tmp_path / "update").write_bytes(b"aaaabb")
    again = OutgoingUpdate(tmp_path, 1)
    assert not again.intact()
    with pytest.raises(WireError, match=r"ends in chunk 2, after 2 of its 4 bytes"):
        list(again.chunks("p"))


class Meeting:
    """A hub and a site on one machine that exchange through a folder."""

    def __init__(self, folder, width: int) -> None:
        record = Folder(url=str(folder / "share"), poll_s=0.001)
        self.model = {"weight": torch.zeros(width)}
        self.hub = record.open_hub(STUDY, folder / "hub")
        self.hub.publish(GlobalModel(0, self.model, study_digest=STUDY))
        self.north = record.open_site(STUDY, "north", folder / "north")
        self.north.fetch("north", 0)

    def update(self, round: int) -> Update:
        own = {"weight": torch.full_like(self.model["weight"], float(round))}
        return Update("north", round, Difference(own, self.model), 3)

    def came(self, round: int) -> Update:
        (arrival,) = self.hub.collect(round, ["north"], PATIENCE_S)
        assert arrival.error is None, arrival.error
        return arrival.update

    def close(self) -> None:
        self.north.close()
        self.hub.close()


@pytest.fixture
def meeting(tmp_path):
    opened = Meeting(tmp_path, 4000)
    yield opened
    opened.close()


def test_the_small_report_after_every_update_arrives(meeting):
    for round in range(1, 81, 2):
        meeting.north.send(meeting.update(round))
        assert digest(meeting.came(round).delta.minuend) == digest(meeting.update(round).delta.minuend)
        # A site sends the scores of the final model after its longest update.
        meeting.north.send(Update("north", round + 1, {}, 0, {"val/dice": float(round)}))
        assert meeting.came(round + 1).scalars == {"val/dice": float(round)}


def test_an_update_that_came_too_late_is_out_of_the_way_of_the_next(meeting, monkeypatch):
    """Its thread would overwrite the next update while that is being sent."""
    paused, go_on = threading.Event(), threading.Event()
    split_chunks = _site_transport.split_chunks
    late = threading.Thread(target=lambda: meeting.north.send(meeting.update(1)), daemon=True)

    def slow(pieces, size):
        for chunk in split_chunks(pieces, size):
            if threading.current_thread().name == "medfed-outgoing" and not go_on.is_set():
                paused.set()
                assert go_on.wait(PATIENCE_S)
            yield chunk

    monkeypatch.setattr(_site_transport, "split_chunks", slow)
    meeting.hub.publish(GlobalModel(1, meeting.model, study_digest=STUDY))
    late.start()
    assert paused.wait(PATIENCE_S)
    late.join(0.3)
    # `send` has not returned, although the hub no longer wants the update: the file is still in use.
    assert late.is_alive()
    go_on.set()
    late.join(PATIENCE_S)
    meeting.north.fetch("north", 1)
    meeting.north.send(meeting.update(2))
    assert digest(meeting.came(2).delta.minuend) == digest(meeting.update(2).delta.minuend)


def test_an_update_that_was_damaged_in_the_site_is_made_again(meeting):
    going = OutgoingUpdate(meeting.north._outbox, 1)
    left = b"what an earlier process left"
    going.write([[left]], meeting.north._objects.describe(meeting.north._run_id(), 1, [left]))
    going.wait_written()
    (meeting.north._outbox / "update").write_bytes(b"damaged")
    meeting.north.send(meeting.update(1))
    assert digest(meeting.came(1).delta.minuend) == digest(meeting.update(1).delta.minuend)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_update_that_the_place_in_between_lost_is_sent_again(meeting, tmp_path, restarted):
    meeting.north.send(meeting.update(1))
    shutil.rmtree(
        tmp_path / "share" / "up"
    )  # a broker's disk that was replaced, or another run that cleared it
    if restarted:
        meeting.north.close()
        meeting.north = Folder(url=str(tmp_path / "share"), poll_s=0.001).open_site(
            STUDY, "north", tmp_path / "north"
        )
    # It waits for the next model, as after every update; nothing in this test publishes one before
    # it is needed.
    waiting = threading.Thread(target=lambda: meeting.north.fetch("north", 1), daemon=True)
    waiting.start()
    assert digest(meeting.came(1).delta.minuend) == digest(meeting.update(1).delta.minuend)
    meeting.hub.publish(GlobalModel(1, meeting.model, study_digest=STUDY))
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_a_site_fetches_a_model_while_the_hub_publishes_it(hub_and_north, tmp_path, sender_waits):
    hub, north = hub_and_north
    arrived: list = []
    fetching = threading.Thread(target=lambda: arrived.append(north.fetch("north", 1)), daemon=True)
    fetching.start()
    publishing = threading.Thread(
        target=lambda: hub.publish(GlobalModel(1, filled(2.5), study_digest=STUDY)), daemon=True
    )
    publishing.start()
    wait_until(lambda: received_chunks(tmp_path / "north/exchange/inbox", "r00001") >= 6)
    assert not arrived
    sender_waits.set()
    publishing.join(PATIENCE_S)
    fetching.join(PATIENCE_S)
    assert digest(arrived[0].weights) == digest(filled(2.5))


def test_the_receipt_is_the_manifest_that_is_sent(hub_and_north):
    _, north = hub_and_north
    sent = filled_update(1.5)
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


@pytest.mark.slow
def test_a_site_takes_part_in_one_run_of_a_study_per_folder(hub_and_north, folder_exchange, tmp_path):
    """Two sums over the same hospitals but one, from one model, would give that hospital's update."""
    hub, north = hub_and_north
    told = []
    north.on_refused = told.append
    north.max_wait_s = 0.3
    hub.disconnect()
    again = folder_exchange.open_hub(STUDY, tmp_path / "another run")
    again.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    with pytest.raises(ExchangeError, match=r"site 'north': no model came from the hub within 0\.3 s"):
        north.fetch("north", 0)
    again.disconnect()
    (reason,) = told
    assert (
        "the hub's model is refused: it is of another run of this study than this site takes part in"
        in reason
    )


def test_a_state_of_the_hub_that_has_arrived_as_an_empty_file_is_waited_for(hub_and_north, tmp_path):
    hub, north = hub_and_north
    hub._presence.stop()
    (tmp_path / "share" / "glob" / STUDY[:16] / "state" / "m").write_bytes(b"")
    north.max_wait_s = 0.3
    with pytest.raises(ExchangeError, match=r"no model came from the hub within 0\.3 s"):
        north.fetch("north", 1)


# The back-up is of before the site's first model; what the site had stored is lost once it has joined.
@pytest.mark.parametrize("empty, lost", [(False, False), (True, False), (False, True)])
def test_a_site_whose_folder_is_a_back_up_says_so_and_one_that_is_merely_started_again_does_not(
    folder_exchange, hub_and_north, tmp_path, caplog, empty, lost
):
    hub, north = hub_and_north
    if empty:
        (tmp_path / "back-up").mkdir()
    else:
        shutil.copytree(tmp_path / "north", tmp_path / "back-up")
    north.send(filled_update(1.5))
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    north.close()
    again = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    assert again.fetch("north", 1).round == 1
    again.close()
    assert "older" not in caplog.text
    shutil.rmtree(tmp_path / "north")
    (tmp_path / "back-up").rename(tmp_path / "north")
    restored = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    if lost:
        shutil.rmtree(tmp_path / "share" / "up")
    assert restored.fetch("north", 0).round == 1
    restored.close()
    assert "its run folder is older than its update of round 1, and knows of round 0 at most" in caplog.text


def flip(path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("bit", [100, -9], ids=["in the header", "in a weight"])
def test_a_model_that_a_disk_changed_is_fetched_again(folder_exchange, hub_and_north, tmp_path, bit):
    """Read as it stands it would be waited for for ever, or give other weights without a word."""
    _, north = hub_and_north
    north.close()
    model = tmp_path / "north/exchange/inbox/r00000.global"
    before = model.read_bytes()
    flip(model, bit % (8 * len(before)))
    again = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    assert digest(again.fetch("north", 0).weights) == digest(filled(0.0))
    again.close()
    assert model.read_bytes() == before


@pytest.mark.parametrize("held", [False, True], ids=["nobody reads it", "still read"])
def test_a_new_model_overwrites_the_file_of_the_oldest_unless_that_may_still_be_read(
    hub_and_north, tmp_path, held
):
    """Who still holds the oldest model must not read the new one's bytes."""
    hub, north = hub_and_north
    models = {0: north.fetch("north", 0)}
    for round in (1, 2, 3):
        hub.publish(GlobalModel(round, filled(float(round)), study_digest=STUDY))
        if not held:
            models.clear()
            gc.collect()
        first = min(inboxes(tmp_path))
        spare = inboxes(tmp_path)[first].stat().st_ino
        models[round] = north.fetch("north", round)
        assert list(inboxes(tmp_path)) == [round - 1, round]
        assert (inboxes(tmp_path)[round].stat().st_ino == spare) is (round > 1 and not held)
    for round, model in models.items():
        assert digest(model.weights) == digest(filled(float(round)))


def inboxes(tmp_path) -> dict[int, Path]:
    """Return the models that north holds, by round."""
    found = sorted((tmp_path / "north/exchange/inbox").glob("r*.global"))
    return {int(path.stem[1:]): path for path in found}


def test_a_site_killed_while_a_new_model_overwrites_the_oldest_goes_on_with_the_new_one(
    folder_exchange, hub_and_north, tmp_path
):
    hub, north = hub_and_north
    for round in (1, 2):
        hub.publish(GlobalModel(round, filled(float(round)), study_digest=STUDY))
        if round == 1:
            north.fetch("north", 1)
    north.close()
    inbox = tmp_path / "north/exchange/inbox"
    (inbox / "r00000.chunks").unlink()
    (inbox / "r00000.global").replace(inbox / "r00002.partial")
    again = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    assert digest(again.fetch("north", 2).weights) == digest(filled(2.0))
    again.close()
    assert sorted(path.name for path in inbox.iterdir()) == [
        f"r0000{round}.{suffix}" for round in (1, 2) for suffix in ("chunks", "global")
    ]


@pytest.mark.parametrize("what", ["r00000.global", "r00000.chunks"])
def test_a_damaged_model_that_the_hub_no_longer_has_is_told(
    folder_exchange, hub_and_north, tmp_path, caplog, what
):
    hub, north = hub_and_north
    north.send(filled_update(1.5))
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    north.close()
    whole = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    assert whole.fetch("north", 0).round == 0  # it trains from it again, for its optimiser
    whole.close()
    assert "damaged" not in caplog.text
    flip(tmp_path / "north/exchange/inbox" / what, 8 * 40)
    again = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    assert again.fetch("north", 0).round == 1
    again.close()
    assert "its run folder holds a damaged model of round 0: it cannot train from it again" in caplog.text


def test_an_update_whose_manifest_a_disk_changed_is_made_again(meeting):
    meeting.north.send(meeting.update(1))
    outgoing = OutgoingUpdate(meeting.north._outbox, 1)
    assert outgoing.intact()
    manifest = meeting.north._outbox / "r00001.manifest"
    whole = manifest.read_bytes()
    for bit in range(0, 8 * len(whole), 61):
        flip(manifest, bit)
        assert not OutgoingUpdate(meeting.north._outbox, 1).intact()
        manifest.write_bytes(whole)
