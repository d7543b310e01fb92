"""status.json: when it is written, what it says of sites and of an end, and its schema."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import jsonschema
import pytest

from medfed.errors import DataError, RunError
from medfed.runs import status
from medfed.runs.rounds import RoundLine
from medfed.runs.status import (
    MAX_MESSAGES,
    SiteStatus,
    Status,
    after_line,
    keep_status,
    read_status,
    status_schema,
)

SCHEMA = Path(__file__).parents[2] / "configs/monitoring/status.schema.json"


def test_a_change_of_state_is_written_at_once_and_steps_at_most_once_per_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "status.json", [100.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: clock[0])
    current = Status(path, study="small")
    assert json.loads(path.read_text())["state"] == "starting"
    current.update(state="training", step=1)
    current.update(step=2)
    assert json.loads(path.read_text())["step"] == 1
    clock[0] += status.MIN_INTERVAL_S
    current.update(step=3)
    assert json.loads(path.read_text())["step"] == 3


def test_a_full_disk_loses_a_status_and_nothing_else(tmp_path: Path) -> None:
    Status(tmp_path / "missing" / "status.json").update(state="training")


def at(monkeypatch: pytest.MonkeyPatch, time: str) -> None:
    monkeypatch.setattr(status, "utc_now", lambda: time)


def test_since_and_moved_change_with_what_they_are_about_and_with_nothing_else(tmp_path, monkeypatch):
    at(monkeypatch, "t0")
    current = Status(tmp_path / "status.json")
    current.site("north", state="training")
    at(monkeypatch, "t1")
    current.update(stored_bytes={"models": 3})
    current.site("north", state="training", step=4)
    assert (current.record.since, current.record.moved) == ("t0", "t0")
    assert (current.record.sites["north"].since, current.record.sites["north"].step) == ("t0", 4)
    current.update(round=1)
    assert (current.record.since, current.record.moved) == ("t0", "t1")
    at(monkeypatch, "t2")
    current.update(round=1)
    assert current.record.moved == "t1"
    current.update(state="finished")
    assert (current.record.since, current.record.moved) == ("t2", "t2")
    current.site("north", state="merged")
    assert current.record.sites["north"].since == "t2"


def test_it_keeps_the_last_lines_of_the_log_each_as_one_line(tmp_path):
    current = Status(tmp_path / "status.json")
    for number in range(MAX_MESSAGES + 2):
        current.log(f"line {number}\n\x1b[2J")
    texts = [one.text for one in current.record.messages]
    assert (len(texts), texts[0], texts[-1]) == (
        MAX_MESSAGES, "line 2\\n\\x1b[2J", f"line {MAX_MESSAGES + 1}\\n\\x1b[2J",
    )  # fmt: skip


def test_a_sites_status_is_what_its_lines_add_up_to():
    known = SiteStatus(state="training", step=3, steps=4)
    merged = RoundLine(
        2, "north", "merged", examples=9, bytes_up=5, bytes_down=7,
        scalars={"train/loss": 0.5, "val/dice": 0.25, "val/loss": 3.0, "privacy/epsilon": 1.5},
    )  # fmt: skip
    first = after_line(known, merged, "val/dice")
    assert first == SiteStatus(
        state="merged", round=2, examples=9, bytes_up=5, bytes_down=7, loss=0.5, score=0.25, epsilon=1.5
    )
    absent = RoundLine(3, "north", "absent", "its disk is full", bytes_down=7)
    second = after_line(first, absent, "val/dice")
    assert (second.state, second.reason, second.round, second.bytes_up) == (
        "absent",
        "its disk is full",
        2,
        5,
    )
    # 7 of the round that it was merged in; who does not answer may have fetched nothing.
    assert (second.bytes_down, second.loss, second.examples) == (7, 0.5, 9)


def test_what_is_written_is_read_again_and_is_valid(tmp_path):
    path = tmp_path / "status.json"
    current = Status(path, role="hub", study="lungs", digest="ab", rounds=3, metric="val/dice")
    current.take([RoundLine(1, "north", "merged", scalars={"train/loss": float("nan")})])
    current.site("south", connected=False)
    current.update(
        state="leading", round=1, round_ends_in_s=None, stored_bytes={"models": 3}, awaited=["south"]
    )
    current.log("round 1")
    current.beat()
    jsonschema.validate(json.loads(path.read_text()), status_schema())
    read = read_status(path)
    assert read.sites["north"] == SiteStatus(state="merged", since=read.since, round=1, loss=None)
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'integer'"):
        jsonschema.validate({**json.loads(path.read_text()), "round": "one"}, status_schema())


def test_the_schema_in_configs_is_todays():
    assert json.loads(SCHEMA.read_text()) == status_schema(), "write it again: tests/runs/test_status.py"


def test_a_file_of_an_earlier_medfed_is_read_and_one_of_a_later_refused(tmp_path):
    path = tmp_path / "status.json"
    assert read_status(path) is None
    path.write_text(
        '{"state": "leading", "study": "lungs", "round": 4, "written": "2026-11-30T10:00:00+00:00"}'
    )
    assert (read_status(path).state, read_status(path).round) == ("leading", 4)
    path.write_text('{"version": 99, "state": "leading"}')
    with pytest.raises(RunError, match="is of version 99, this medfed reads up to 2; update medfed"):
        read_status(path)
    path.write_text('{"state": 3')
    with pytest.raises(RunError, match=r"status\.json: is damaged or of another medfed"):
        read_status(path)


def test_the_file_is_written_while_nothing_changes_until_the_block_ends(tmp_path, monkeypatch):
    beats = threading.Semaphore(0)
    current = Status(tmp_path / "status.json")
    monkeypatch.setattr(status, "HEARTBEAT_S", 0.001)
    monkeypatch.setattr(current, "beat", beats.release)
    with keep_status(current):
        assert all(beats.acquire(timeout=30) for _ in range(3))
    assert "medfed-status" not in {thread.name for thread in threading.enumerate()}


def ended(path, error: BaseException | None, raised: type[BaseException] | None = None) -> dict:
    status = Status(path, study="lungs")
    status.update(state="training")

    def block() -> None:
        with keep_status(status):
            if error is not None:
                raise error

    if raised is None:
        block()
    else:
        with pytest.raises(raised):
            block()
    return json.loads(path.read_text())


def test_the_status_says_how_it_ended(tmp_path):
    path = tmp_path / "status.json"
    assert ended(path, None)["state"] == "training"
    ours = ended(path, DataError("case 1f: no slice"), DataError)
    assert (ours["state"], ours["reason"]) == ("stopped", "case 1f: no slice")
    for interruption in (KeyboardInterrupt(), SystemExit(1)):
        stopped = ended(path, interruption, KeyboardInterrupt)
        assert stopped["state"] == "interrupted"
        assert "reason" not in stopped


def test_another_librarys_message_which_may_quote_a_path_is_not_written(tmp_path):
    stopped = ended(tmp_path / "status.json", OSError("/data/Mrs Smith"), OSError)
    assert (stopped["state"], stopped["reason"]) == ("stopped", "OSError")
    assert "Smith" not in (tmp_path / "status.json").read_text()


def test_a_score_that_stays_in_its_hospital_is_not_that_of_an_earlier_round():
    def line(round: int, **scalars: float) -> RoundLine:
        return RoundLine(round=round, site="north", status="merged", scalars=scalars)

    one = after_line(SiteStatus(), line(1, **{"train/loss": 0.5, "val/dice": 0.25}), "val/dice")
    assert (one.loss, one.score) == (0.5, 0.25)
    two = after_line(one, line(2, **{"train/loss": 0.4}), "val/dice")
    assert (two.loss, two.score) == (0.4, None)
