"""Runs side by side: their own rows, and differences paired by patient."""

from __future__ import annotations

import csv
import json
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
    actual = run_comparison.comparison_rows(two)
    difference = next(
        row
        for row in actual
        if (row.model, row.against, row.site, row.metric) == ("better", "plain", "west", "dice")
    )
    assert difference.value == pytest.approx(0.01)
    # Every patient gained the same: resampling changes nothing, though single scores spread by 0.08.
    assert difference.low is None or difference.high - difference.low < 1e-9
    own = {
        row.model: row.value
        for row in actual
        if row.site == "west" and row.metric == "dice" and not row.against
    }
    assert own["better"] - own["plain"] == pytest.approx(0.01)


@pytest.mark.parametrize(("site", "others"), [("west", set()), ("north", {rows.ALL_SITES, rows.SITE_MEAN})])
def test_a_run_with_one_more_patient_does_not_give_that_patients_values(tmp_path, site, others):
    """Six times the mean over six minus five times that over five is the sixth's; west took no part."""
    first, second = (fake_runs.write(tmp_path / name, "segment", patients=6) for name in "ab")
    cases = rows.read_cases(first / "cases.jsonl")
    rows.write(first / "cases.jsonl", [case for case in cases if case.patient != f"patient-{site}-test-0"])
    from medfed.evaluation.summarise import summarise

    for run in (first, second):
        (run / "study.yaml").write_text(json.dumps({"evaluation": {"smallest_group": 3}}))
        summarise(run)
    shown = {
        (row.model, row.site): row
        for row in run_comparison.comparison_rows([first, second])
        if row.metric == "dice" and row.against is None
    }
    assert all(row.value is not None for (model, _), row in shown.items() if model == "a")
    withheld = {its for (model, its), row in shown.items() if model == "b" and row.value is None}
    assert withheld == {site, *others}
    assert shown["b", site].note.startswith("beside an earlier run's it would be of fewer than 3 patients")
    assert run_comparison.write_comparison([first, second], tmp_path / "out").is_file()


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


def test_each_hospital_has_a_plot_with_a_line_per_run_and_small_samples_are_marked(two):
    """Values .5 and .7: of an axis from 0 to 1 over 208 pixels, 6 from the left, .7 lies at 151.6 at most."""
    about = {"round": 1, "site": "north", "split": "test", "metric": "dice", "structure": "lesion", "n": 8}
    first = rows.Row(
        **about, model="plain", value=0.5, low=0.4, high=0.6, note="of 8 patients, so likely too narrow"
    )
    second = rows.Row(**about, model="better", value=0.7, low=0.6, high=0.8)
    table = run_comparison._table(["plain", "better"], [first, second], "dice", "lesion")
    assert table["small"]
    (plot,) = table["plots"]
    assert [name for name, _ in plot["lines"]] == ["plain", "better"]
    axis = run_comparison.charts.span([0.4, 0.8], 0.0, 1.0)
    at = 6 + (0.5 - axis[0]) / (axis[1] - axis[0]) * 208
    assert f'cx="{at:.2f}"'.rstrip('0"').rstrip(".") in plot["lines"][0][1]
    assert plot["lines"][1][1].count('class="reference"') == 1
    page = run_comparison.page(["plain", "better"], [first, second])
    assert page.count("†</abbr>") == 1
    assert "† Interval from fewer than ten patients" in page
    assert page.count('<svg class="cell"') == 3


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
