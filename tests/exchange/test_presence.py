"""Only one process may act as a site; another may replace it once its heartbeats have stopped."""

from __future__ import annotations

import pytest
from chunked_updates import STUDY, wait_until

from medfed.errors import ExchangeError
from medfed.exchange._presence import SitePresence
from medfed.exchange._protocol import OFFLINE_AFTER_HEARTBEATS
from medfed.exchange._study_store import StudyStore
from medfed.exchange.folder import FolderStore
from medfed.wire.signing import Unsigned

HEARTBEAT_S = 0.2


@pytest.fixture
def objects(tmp_path, monkeypatch):
    """North's objects in a folder, whose heartbeats are short."""
    monkeypatch.setattr(FolderStore, "heartbeat_s", HEARTBEAT_S)
    store = FolderStore(str(tmp_path))
    yield StudyStore(store, Unsigned(), STUDY, "north")
    store.close()


def heartbeat(objects):
    return objects.open_control(objects.get_site_object("north", "heartbeat"), "north", "heartbeat")


def test_a_second_process_is_refused_while_the_first_sends_heartbeats(objects):
    first = SitePresence(objects, "first")
    first.claim()
    first.start()
    with pytest.raises(ExchangeError, match="site 'north' already takes part from another folder or machine"):
        SitePresence(objects, "second").claim()
    first.stop()
    assert heartbeat(objects).session == "first"
    first.raise_if_replaced()


def test_a_store_that_is_lost_while_a_site_looks_for_another_process_is_no_other_process(
    objects, monkeypatch
):
    pauses = []

    def lose_store(seconds: float) -> None:
        pauses.append(seconds)
        objects.store.delete_study(STUDY)

    monkeypatch.setattr("medfed.exchange._presence.time.sleep", lose_store)
    monkeypatch.setattr("medfed.exchange._presence.time.monotonic", lambda: 0.2 * len(pauses))
    SitePresence(objects, "first").claim()
    SitePresence(objects, "second").claim()
    assert heartbeat(objects).session == "second"


def test_a_silent_process_is_replaced_and_stops_when_it_notices(objects, monkeypatch):
    pauses = []
    monkeypatch.setattr("medfed.exchange._presence.time.sleep", pauses.append)
    monkeypatch.setattr("medfed.exchange._presence.time.monotonic", lambda: 0.2 * len(pauses))
    first, second = SitePresence(objects, "first"), SitePresence(objects, "second")
    first.claim()
    second.claim()
    assert heartbeat(objects).session == "second"
    # 2.5 heartbeats of 0.2 s without a sign are over after three pauses of 0.2 s.
    assert (OFFLINE_AFTER_HEARTBEATS, pauses) == (2.5, [0.2] * 3)
    monkeypatch.undo()
    first.start()
    wait_until(lambda: first._replaced is not None)
    with pytest.raises(ExchangeError, match="another process has taken its place while this one was silent"):
        first.raise_if_replaced()
    assert heartbeat(objects).session == "second"


def test_a_restart_of_the_same_session_does_not_wait_and_clears_its_drop_out(objects, monkeypatch):
    def never(seconds: float) -> None:
        pytest.fail("it waited for itself")

    monkeypatch.setattr("medfed.exchange._presence.time.sleep", never)
    first = SitePresence(objects, "first")
    first.claim()
    first.send("dropped_out", "its disk is full")
    SitePresence(objects, "first").claim()
    drop_out = objects.open_control(objects.get_site_object("north", "dropped_out"), "north", "dropped_out")
    assert drop_out.text == ""
