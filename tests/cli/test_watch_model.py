"""`medfed watch-model`: its exit codes, and what it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from pipeline.watch.watched import TABLE, run_of, table

from medfed.cli import main


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    run = run_of(tmp_path / "made", TABLE)
    return ["watch-model", str(run.path), "--data"]


def test_an_alarm_ends_with_5_and_none_with_0(base: list[str], tmp_path: Path) -> None:
    before, same = table(tmp_path / "before.csv", 80, 1), table(tmp_path / "same.csv", 30, 2)
    result = CliRunner().invoke(main, [*base, str(same), "--reference", str(before)])
    assert (result.exit_code, "no alarm: " in result.output) == (0, True), result.output
    shifted = table(tmp_path / "shifted.csv", 30, 3, shift=2)
    result = CliRunner().invoke(main, [*base, str(shifted)])
    assert (result.exit_code, "ALARM: column x" in result.output) == (5, True), result.output


def test_what_cannot_be_judged_is_no_success(base: list[str], tmp_path: Path) -> None:
    few, before = table(tmp_path / "few.csv", 3, 2), table(tmp_path / "before.csv", 80, 1)
    result = CliRunner().invoke(main, [*base, str(few), "--reference", str(before)])
    assert (result.exit_code, "It counts as no look" in result.output) == (1, True)
    result = CliRunner().invoke(main, base[:2])
    assert (result.exit_code, "with --data" in result.output) == (1, True)
