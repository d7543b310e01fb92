"""A run's progress in its status file, beside the display."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from medfed.runs.progress import Progress, ProgressTable
from medfed.runs.recorded_progress import RecordedProgress, record_warnings
from medfed.runs.rounds import RoundLine, RoundReport, SiteResult
from medfed.runs.status import Status


class Heard(Progress):
    """Keeps which of a display's functions were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str):
        known = object.__getattribute__(self, name)
        if name in ("start", "training", "waiting", "round", "log", "stop"):
            object.__getattribute__(self, "calls").append(name)
        return known


@pytest.fixture
def status(tmp_path: Path) -> Status:
    return Status(tmp_path / "status.json")


def test_everything_reaches_the_display_too(status, tmp_path):
    display, opened = Heard(), []
    display.on_opened = opened.append
    progress = RecordedProgress(display, status)
    progress.opened(tmp_path)
    progress.start("a study", {"north": 3}, 2, "val/dice")
    progress.training("north", 1, 2)
    progress.connections({"north"}, {"north"}, None)
    progress.round(RoundReport(1, (), 1.0, 0))
    progress.log("a line")
    progress.stop()
    assert display.calls == ["start", "training", "waiting", "round", "log", "stop"]
    assert opened == [tmp_path]


def test_sites_of_one_process_take_turns(status):
    progress = RecordedProgress(Progress(), status)
    progress.start("a study", {"north": 3, "south": 2}, 2, "val/dice")
    assert status.record.sites["north"].cases == 3
    progress.training("north", 1, 4)
    progress.training("south", 2, 4)
    north, south = status.record.sites["north"], status.record.sites["south"]
    assert (north.state, south.state, south.step, south.steps) == ("waiting", "training", 2, 4)
    assert south.last_seen
    assert south.connected is None


def test_sites_of_different_workers_train_at_once(status):
    progress = RecordedProgress(Progress(), status)
    progress.start("a study", {"east": 1, "north": 1, "south": 1}, 2, "val/dice")
    progress.training_together("east", 0, 4, ("east", "south"))
    progress.training_together("north", 1, 4, ("north",))
    sites = status.record.sites
    assert (sites["east"].state, sites["north"].state, sites["north"].step) == ("training", "training", 1)
    progress.training_together("south", 0, 4, ("east", "south"))
    sites = status.record.sites
    assert {name: sites[name].state for name in sites} == {
        "east": "waiting",
        "north": "training",
        "south": "training",
    }


def test_a_table_shows_sites_of_different_workers_as_training():
    table = ProgressTable.begin("a study", {"east": 1, "north": 1, "south": 1}, 2, "val/dice")
    table.train("east", 0, 4, ("east", "south"))
    table.train("north", 1, 4, ("north",))
    assert [table.rows[site].status for site in ("east", "north", "south")] == [
        "training",
        "training",
        "waiting",
    ]
    table.train("south", 0, 4, ("east", "south"))
    assert [table.rows[site].status for site in ("east", "north", "south")] == [
        "waiting",
        "training",
        "training",
    ]


def test_the_hub_sees_who_is_connected_and_who_is_awaited(status):
    progress = RecordedProgress(Progress(), status)
    progress.start("a study", {"north": 0, "south": 0, "east": 0}, 2, "val/dice")
    progress.connections({"north", "east"}, {"north", "south"}, 61.25)
    states = {name: (one.state, one.connected) for name, one in status.record.sites.items()}
    assert states == {
        "north": ("training", True),
        "south": ("not connected", False),
        "east": ("waiting", True),
    }
    assert (status.record.connected, status.record.awaited) == (["east", "north"], ["north", "south"])
    assert status.record.round_ends_in_s == 61.2
    progress.connections({"north"}, {"south"}, None)  # north's update has come
    assert status.record.sites["north"].state == "waiting"
    assert status.record.round_ends_in_s is None
    progress.connections(set(), {"south"}, None)  # and north's machine is off
    assert status.record.sites["north"].state == "not connected"


def test_a_site_that_stopped_is_no_site_that_waits_until_it_is_started_again(status):
    progress = RecordedProgress(Progress(), status)
    progress.start("a study", {"north": 0, "south": 0}, 2, "val/dice")
    why = {"south": "its run folder cannot be read or written"}
    for awaited in ({"north"}, {"south"}):  # in the round, and while the hub waits for its return
        progress.connections({"north"}, awaited, None, why)
        south = status.record.sites["south"]
        assert (south.state, south.reason) == ("stopped", why["south"])
    progress.connections({"north", "south"}, {"north"}, None)
    south = status.record.sites["south"]
    assert (south.state, south.reason) == ("waiting", "")


def report(number: int, final: bool = False) -> RoundReport:
    merged = SiteResult("north", "merged", bytes_up=5, scalars={"val/dice": 0.5})
    away = SiteResult("south", "absent", "its disk is full")
    return RoundReport(number, (merged, away), 2.0, 7, final=final)


def test_a_resumed_run_counts_on_from_the_rounds_before(status):
    before = [RoundLine(1, "north", "merged", bytes_up=5, bytes_down=7)]
    progress = RecordedProgress(Progress(), status, before)
    progress.start("a study", {"north": 0, "south": 0}, 3, "val/dice")
    progress.round(report(2))
    north, south = status.record.sites["north"], status.record.sites["south"]
    assert (north.bytes_up, north.bytes_down, north.round, north.score) == (10, 14, 2, 0.5)
    assert (south.state, south.reason) == ("absent", "its disk is full")
    assert (status.record.round, status.record.last_round_s) == (2, 2.0)
    progress.round(report(4, final=True))
    assert status.record.round == 2


def test_rounds_of_models_to_compare_with_are_no_rounds_of_the_study(status):
    progress = RecordedProgress(Progress(), status)
    progress.start("a study", {"north": 0}, 3, "val/dice")
    progress.start("without south", {"north": 0}, 9, "val/loss")
    progress.round(report(2))
    record = status.record
    assert (record.phase, record.rounds, record.metric) == ("without south", 3, "val/dice")
    assert record.sites["north"].round == 0


def test_warnings_are_recorded_and_go_where_they_went(status, caplog, capsys):
    log = logging.getLogger("medfed.federation")
    with record_warnings(status):
        log.warning("the disk of %s is full", "north")
        log.info("nothing")
    log.warning("after the end")
    assert [one.text for one in status.record.messages] == ["the disk of north is full"]
    assert "the disk of north is full" in caplog.text


def test_a_warning_is_printed_where_there_is_no_handler(status, monkeypatch):
    printed = []
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda self: False)
    monkeypatch.setattr(logging, "lastResort", logging.NullHandler())
    monkeypatch.setattr(logging.lastResort, "handle", printed.append)
    with record_warnings(status):
        logging.getLogger("medfed").warning("a lost connection")
    assert [one.getMessage() for one in printed] == ["a lost connection"]
