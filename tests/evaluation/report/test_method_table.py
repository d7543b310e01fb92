"""Methods on the same patients: values, differences and costs, computed by hand."""

from __future__ import annotations

import re

import pytest

from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report.method_table import Cost, compare_methods, page, renamed, text
from medfed.evaluation.rows import CaseRow

SETTINGS = SummarySettings(round=1, seed=0, held_out=["west"], min_patients=1, draws=50)
METHODS = {"krum": Cost(refused="needs 3 sites"), "fedavg": Cost(2000.0, 1.0), "fedadam": Cost(4000.0, 2.0)}


def cases(model, site, values, split="test"):
    return [
        CaseRow(model=model, site=site, split=split, case=f"{site}{i}", patient=f"{site}{i}", metric="dice",
                structure="lesion", value=value)
        for i, value in enumerate(values)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def table():
    rows = [*cases("fedavg", "north", [0.5, 0.7, 0.9]), *cases("fedadam", "north", [0.4, 0.6, 0.8])]
    rows += [*cases("fedavg", "west", [0.2, 0.4]), *cases("fedadam", "west", [0.3, 0.5])]
    rows += [*cases("fedavg", "aachen", [0.5]), *cases("fedadam", "aachen", [0.5])]
    return compare_methods("heart", rows, METHODS, SETTINGS)


def test_methods_are_compared_to_the_first_that_ran_at_held_out_hospitals_first(table):
    assert (table.against, table.metric) == ("fedavg", "dice")
    assert table.places == ["west", "all", "aachen", "north"]
    assert table.score("fedavg", "north").value == pytest.approx(0.7)
    assert table.score("fedadam", "west").value == pytest.approx(0.4)
    assert table.difference("fedadam", "north").value == pytest.approx(0.1)
    assert table.difference("fedadam", "west").value == pytest.approx(-0.1)
    # Over the three patients of north, each 0.1 better, and the one of aachen, equally good.
    assert table.difference("fedadam", "all").value == pytest.approx(0.075)
    assert table.score("krum", "north") is None


def test_the_terminal_shows_two_hospitals_the_difference_and_the_bytes(table):
    lines = text(table).splitlines()
    assert lines[0] == "Dice, with 95 % intervals over patients"
    assert lines[2].split("  ")[0] == "method"
    assert "fedavg minus it, west" in lines[2]
    assert "north" not in lines[2]
    assert lines[3] == "krum     not run: needs 3 sites"
    assert lines[4].startswith("fedavg   0.30")
    assert lines[4].endswith("2.0 kB")
    assert "−0.100" in lines[5]
    assert lines[5].endswith("4.0 kB")


def test_the_page_has_every_hospital(table):
    html = page(table)
    assert "needs 3 sites" in html
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "West", "All hospitals of the study", "Aachen", "North", "Cost of each method",
    ]  # fmt: skip
    # Two patients at west, four in the pool, one at aachen, three at north; each for both methods.
    assert re.findall(r'<td class="num">(\d)</td></tr>', html) == list("22441133")


def test_validation_patients_give_no_score():
    table = compare_methods("heart", cases("fedavg", "north", [0.5], "val"), {"fedavg": Cost()}, SETTINGS)
    assert (table.scores, table.metric, table.places) == (None, "", [])
    assert table.score("fedavg", "north") is table.difference("fedavg", "north") is None
    assert text(table).splitlines()[0] == "no metric, with 95 % intervals over patients"


def test_rows_are_renamed_by_model_and_site_and_the_others_left_out():
    rows = [*cases("federated", "north", [0.5]), *cases("federated", "aachen", [0.6])]
    (row,) = renamed(rows, {("federated", "aachen"): "ditto"})
    assert (row.model, row.site, row.value) == ("ditto", "aachen", 0.6)
