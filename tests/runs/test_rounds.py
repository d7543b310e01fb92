from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfed.errors import RunError
from medfed.runs.rounds import (
    RoundLine,
    RoundReport,
    SiteResult,
    append_round,
    first_examples,
    last_round,
    read_rounds,
)

NORTH = SiteResult("north", "merged", examples=5, bytes_up=7, seconds=1.23456, scalars={"train/loss": 0.5})
SOUTH = SiteResult("south", "not sampled")
EAST = SiteResult("east", "absent", "it has stopped")


def test_a_round_is_one_line_per_site(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_round(path, RoundReport(1, (EAST, SOUTH, NORTH), 2.0, 10))
    east, south, north = (json.loads(line) for line in path.read_text().splitlines())
    # Nothing is sent to a site that is not asked, and one that does not answer may have fetched nothing.
    assert (east["bytes_down"], south["bytes_down"], north["bytes_down"]) == (0, 0, 10)
    assert north == {
        "round": 1, "site": "north", "status": "merged", "reason": "", "examples": 5, "seconds": 1.235,
        "bytes_up": 7, "bytes_down": 10, "scalars": {"train/loss": 0.5},
        "notes": [],
    }  # fmt: skip


def test_lines_are_read_by_round_and_site_and_the_later_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_round(path, RoundReport(2, (NORTH,), 2.0, 10))
    append_round(path, RoundReport(1, (SOUTH, NORTH), 2.0, 10))
    append_round(path, RoundReport(2, (SiteResult("north", "refused", "too long"),), 2.0, 10))
    lines = read_rounds(path)
    assert [(line.round, line.site, line.status) for line in lines] == [
        (1, "north", "merged"),
        (1, "south", "not sampled"),
        (2, "north", "refused"),
    ]
    assert read_rounds(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_ignored_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_round(path, RoundReport(1, (NORTH,), 2.0, 10))
    path.write_bytes(path.read_bytes() + b'{"round": 2, "si')
    assert len(read_rounds(path)) == 1
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(RunError, match=r"rounds\.jsonl: line 2 is not a round"):
        read_rounds(path)


def test_the_last_round_is_the_last_that_changed_the_model() -> None:
    lines = [
        RoundLine(1, "north", "merged"),
        RoundLine(2, "north", "absent"),
        RoundLine(3, "north", "reported"),
    ]
    assert last_round(lines) == 1
    assert last_round([RoundLine(4, "west", "evaluated"), *lines]) == 4
    assert last_round([]) == 0


def test_the_first_number_of_examples_of_each_site() -> None:
    lines = [
        RoundLine(1, "north", "absent"),
        RoundLine(1, "south", "merged", examples=7),
        RoundLine(2, "north", "merged", examples=30),
        RoundLine(3, "south", "merged", examples=9),
        RoundLine(3, "west", "merged", examples=0),
    ]
    assert first_examples(lines) == {"south": 7, "north": 30}
