"""Runs side by side: their own rows, and differences paired by patient."""

from __future__ import annotations

import csv
import math
import re
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.report import run_comparison

sys.path.insert(0, str(Path(__file__).parents[1]))
import fake_runs


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of the same patients; the second is better by 0.01 for each."""
    folder = tmp_path_factory.mktemp("several")
    first, second = (fake_runs.write(folder / name, "segment", patients=6) for name in ("plain", "better"))
    cases = [
        msgspec.structs.replace(case, value=case.value + 0.01)
        if case.metric == "dice" and case.model == "federated" and case.value is not None
        else case
        for case in rows.read_cases(second / "cases.jsonl")
    ]
    rows.write(second / "cases.jsonl", cases)
    from medfed.evaluation.summarise import summarise

    summarise(second)
    return first, second


def test_the_difference_is_paired_and_its_interval_as_narrow_as_the_pairs(two, tmp_path):
    found = run_comparison.comparison_rows(two)
    difference = next(
        row
        for row in found
        if (row.model, row.against, row.site, row.metric) == ("better", "plain", "west", "dice")
    )
    assert difference.value == pytest.approx(0.01)
    # Every patient gained the same: resampling changes nothing, though single scores spread by 0.08.
    assert difference.low is None or difference.high - difference.low < 1e-9
    own = {
        row.model: row.value
        for row in found
        if row.site == "west" and row.metric == "dice" and not row.against
    }
    assert own["better"] - own["plain"] == pytest.approx(0.01)


def test_the_page_is_the_rows_and_holds_no_patient(two, tmp_path):
    path = run_comparison.write_comparison(two, tmp_path)
    text = path.read_text()
    summary_rows = rows.read_rows(tmp_path / "runs.jsonl")
    with open(tmp_path / "runs.csv", newline="") as file:
        assert [float(line["value"] or "nan") for line in csv.DictReader(file)] == pytest.approx(
            [row.value if row.value is not None else math.nan for row in summary_rows],
            abs=0,
            rel=0,
            nan_ok=True,
        )
    west = next(
        r for r in summary_rows if (r.model, r.site, r.metric, r.against) == ("plain", "west", "dice", None)
    )
    assert f"{west.value:.3f}" in text
    assert f"{west.low:.3f} to {west.high:.3f}" in text
    assert "patient-west" not in text
    assert "case-west" not in text
    assert not re.search(r"<script|https?://|url\(", text)


def test_without_case_rows_runs_stand_side_by_side_untested(two, tmp_path):
    import shutil

    copies = []
    for run in two:
        copies.append(shutil.copytree(run, tmp_path / run.name))
        (copies[-1] / "cases.jsonl").unlink()
    assert all(row.against is None for row in run_comparison.comparison_rows(copies))


def test_names_are_told_apart_and_one_run_is_refused(tmp_path):
    assert run_comparison.run_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["run", "run-2"]
    with pytest.raises(RunError, match="give two runs or more"):
        run_comparison.write_comparison([tmp_path], tmp_path)


def test_a_place_to_compare_one_run_in_is_refused(two, tmp_path):
    result = CliRunner().invoke(main, ["report", str(two[0]), "--out", str(tmp_path / "there")])
    assert result.exit_code == 2
    assert "this is for the comparison of several runs" in result.output
    assert not (tmp_path / "there").exists()
