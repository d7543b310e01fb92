"""Tables that only some runs have: which row stands where, and none where there is no such row."""

from __future__ import annotations

from medfed.evaluation.report import experiments
from medfed.evaluation.report.focus import Focus, FocusRows
from medfed.evaluation.rows import Row, personal, without


def row(site, model, value, *, against=None, group=None, metric="dice"):
    return Row(
        round=3, site=site, split="test", model=model, metric=metric, value=value, n=9, structure="lesion",
        against=against, group=group, note=None if value is not None else "fewer than 5 patients",
    )  # fmt: skip


def rows(*found):
    return FocusRows(found, Focus("dice", "lesion", "test", 3, []))


def test_personal_models_stand_beside_the_global_one_on_their_own_hospital():
    summary_rows = rows(
        row("north", "federated", 0.8),
        row("north", "personal:north", 0.85),
        row("north", "federated", -0.05, against="personal:north"),
        # Somebody else's personal model, and another metric, have no place here.
        row("north", "personal:south", 0.3),
        row("south", "personal:south", 1.5, metric="hd95_mm"),
    )
    north, south = experiments.against_federated(summary_rows, ["north", "south"], personal)
    assert (north["federated"].value, north["other"].value, north["difference"].value) == (
        0.8,
        0.85,
        -0.05,
    )
    assert south["other"] is None


def test_contributions_are_the_others_loss_and_hidden_rows_stay_hidden():
    summary_rows = rows(
        row("west", "federated", 0.8),
        row("west", "federated", 0.1, against="without:north"),
        row("all", "federated", 0.8),
        row("all", "federated", None, against="without:north"),
        row("north", "without:north", 0.6),
        row("north", "federated", 0.2, against="without:north"),
    )
    shown = experiments.contributions(summary_rows, ["north"], ["west"])
    assert shown["places"] == [("west", [9]), ("all", [])]
    assert [cell and cell.value for cell in shown["lines"][0]["cells"]] == [0.1, None]
    (line,) = experiments.against_federated(summary_rows, ["north"], without)
    assert (line["other"].value, line["difference"].value, line["alone"]) == (0.6, 0.2, None)


def test_robustness_has_a_line_a_change_and_a_column_where_something_was_measured():
    summary_rows = rows(
        row("west", "federated", 0.8),
        row("west", "federated", -0.1, against="unchanged", group="condition=noise of 10 %"),
        row("west", "federated", 0.7, group="sex=F"),
    )
    shown = experiments.robustness(summary_rows, ["west", "all"])
    assert shown["places"] == ["west"]
    assert [(line["name"], line["cells"][0].value) for line in shown["lines"]] == [("noise of 10 %", -0.1)]


def test_without_such_rows_there_is_no_section():
    plain = rows(row("north", "federated", 0.8), row("north", "local:north", 0.7))
    assert experiments.against_federated(plain, ["north"], personal) is None
    assert experiments.against_federated(plain, ["north"], without) is None
    assert experiments.contributions(plain, ["north"], []) is None
    assert experiments.robustness(plain, ["north"]) is None
