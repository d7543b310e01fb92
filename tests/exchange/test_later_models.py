"""A hub whose folder is a back-up hears from its sites that they hold a later model, or another run's."""

from __future__ import annotations

import shutil
import threading

import pytest
from chunked_updates import STUDY, filled, wait_until

from medfed.errors import QuorumError
from medfed.exchange import _later_models
from medfed.exchange._presence import HOLDS
from medfed.wire.update import GlobalModel


@pytest.fixture
def impatient(monkeypatch):
    """A site is refused as soon as it says that it holds a later model."""
    monkeypatch.setattr(_later_models, "REFUSED_AFTER_S", 0.0)


def waiting(north, round: int) -> None:
    """Let a site wait for the hub's model of a round, for as long as the test lasts."""
    north.max_wait_s = 120.0
    threading.Thread(target=north.fetch, args=["north", round], daemon=True).start()


def test_a_hub_of_another_run_hears_which_run_its_site_takes_part_in(
    hub_and_north, folder_exchange, tmp_path, impatient, caplog
):
    hub, north = hub_and_north
    own = hub._run
    hub.disconnect()
    again = folder_exchange.open_hub(STUDY, tmp_path / "back-up of before the run")
    again.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    waiting(north, 1)
    (received,) = again.collect(1, ["north"], 60)
    again.disconnect()
    assert received.update is None
    said = str(received.error)
    assert said.startswith(
        f"site 'north', round 1: it takes part in another run of this study ({own[:8]}, not "
        f"{again._run[:8]}; its newest model is of round 0)"
    )
    assert "restore the newest copy of its run folder and start it with --resume" in said
    assert "move the site's run folder of this study away" in said
    assert "hub: site 'north' takes part in another run of this study" in caplog.text


def test_a_hub_that_is_older_than_its_site_with_a_store_that_is_gone_hears_of_the_later_model(
    hub_and_north, folder_exchange, tmp_path, impatient
):
    hub, north = hub_and_north
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    hub.publish(GlobalModel(2, filled(2.0), study_digest=STUDY))
    north.fetch("north", 2)
    hub.disconnect()
    (tmp_path / "share").rename(tmp_path / "gone")
    again = folder_exchange.open_hub(STUDY, tmp_path / "hub")
    again.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    waiting(north, 2)
    (received,) = again.collect(1, ["north"], 60)
    said = str(received.error)
    assert "it holds the model of round 2, and this hub has just published that of round 0" in said
    # Once the hub has caught up, the site is waited for again.
    again.publish(GlobalModel(2, filled(2.0), study_digest=STUDY))
    north.fetch("north", 2)
    wait_until(lambda: again._heartbeats.read(["north"]) or again._heartbeats.held("north") is None)
    assert list(again.collect(3, ["north"], 0.3)) == []
    again.disconnect()


def test_a_site_has_some_time_in_which_the_hub_only_says_so(hub_and_north, folder_exchange, tmp_path, caplog):
    hub, north = hub_and_north
    hub.disconnect()
    again = folder_exchange.open_hub(STUDY, tmp_path / "another run")
    again.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    waiting(north, 1)
    wait_until(lambda: again._heartbeats.read(["north"]) or again._heartbeats.held("north") is not None)
    assert list(again.collect(1, ["north"], 0.3)) == []
    again.disconnect()
    assert "hub: site 'north' takes part in another run of this study" in caplog.text


@pytest.mark.parametrize("text", ["", "lacks 3", HOLDS, f"{HOLDS} run", f"{HOLDS} run -1", f"{HOLDS} a b 3"])
def test_other_heartbeats_say_nothing_of_the_kind(hub_and_north, text):
    hub, _ = hub_and_north
    hub._heartbeats._note_held("north", text, 1.0)
    assert hub._answers._later.refusal(1, "north") is None


def test_it_counts_from_when_the_site_first_said_so_and_anew_for_another_model(hub_and_north):
    hub, _ = hub_and_north
    for now, text in ((1.0, f"{HOLDS} x 2"), (2.0, f"{HOLDS} x 2")):
        hub._heartbeats._note_held("north", text, now)
    assert hub._heartbeats.held("north") == ("x", 2, 1.0)
    hub._heartbeats._note_held("north", f"{HOLDS} x 3", 3.0)
    assert hub._heartbeats.held("north") == ("x", 3, 3.0)


@pytest.mark.slow
def test_a_hub_restored_from_before_its_run_ends_with_what_to_do(federation, tmp_path):
    from federation import over

    study = federation(over(str(tmp_path / "share")), settings={"pause_s": 0.3})
    study.start("hub")
    study.until(lambda: (tmp_path / "hub" / "exchange").exists(), "the hub began")
    study.start("north", "south")
    study.until(lambda: study.rounds(), "a round was merged")
    study.kill("hub")
    shutil.rmtree(tmp_path / "hub")
    study.start("hub")
    study.running["hub"].join(100)
    last = study.log("hub").strip().splitlines()[-1]
    assert last.startswith(f"{QuorumError.__module__}.QuorumError: round 1: 0 of 2 sites sent a valid update")
    assert "restore the newest copy of its run folder and start it with --resume" in last
