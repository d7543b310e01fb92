"""Models against each other: which rows stand in which cell."""

from __future__ import annotations

from medfed.evaluation.report.comparison import comparison, matrix, measures, subgroup_tables
from medfed.evaluation.report.focus import focus_of
from medfed.runs.facts import RunFacts

from .result_rows import result, run_of


def compared(*rows, site="north"):
    run = run_of(rows=rows)
    focus = focus_of(run)
    return comparison(run, focus, focus.rows(rows), site)


def test_each_model_stands_beside_its_difference_to_the_federated_one():
    ours, alone = result(0.8, method="bootstrap"), result(0.6, model="local:north")
    versus = result(0.2, against="local:north", p=0.01, method="Wilcoxon", note="of 9 patients")
    table = compared(alone, versus, ours)
    assert [(line["row"], line["versus"]) for line in table["lines"]] == [(ours, None), (alone, versus)]
    assert (table["title"], table["method"], table["n"]) == ("Against each hospital alone", "bootstrap", 10)
    assert table["methods"] == ["Wilcoxon"]
    assert table["notes"] == [("north alone", "of 9 patients")]


def test_models_with_tables_of_their_own_are_left_out():
    table = compared(result(0.8), result(0.7, model="without:north"), result(0.7, model="personal:north"))
    assert [line["row"].model for line in table["lines"]] == ["federated"]
    assert table["title"] == "Against other models"


def test_a_model_off_the_axis_is_not_drawn_at_its_edge():
    """The untrained model does not widen the axis, which spans 0.7 to 0.9 here."""
    table = compared(result(0.8, low=0.7, high=0.9), result(0.1, model="untrained"))
    ours, untrained = (line["graph"] for line in table["lines"])
    assert "<circle" in ours
    assert untrained == '<small class="soft">off the scale</small>'


def matrix_of(rows, metric="dice", **facts):
    run = run_of(RunFacts(**facts), rows=rows)
    focus = focus_of(run)._replace(metric=metric)
    return matrix(run, focus, focus.rows(rows))


def four(metric="dice"):
    values = {("federated", "north"): 4.0, ("federated", "south"): 3.0, ("local:north", "north"): 2.0}
    values["local:north", "south"] = 0.0
    return [result(v, model=m, site=s, metric=metric) for (m, s), v in values.items()]


def test_cells_are_shaded_by_their_share_of_the_range():
    table = matrix_of(four(), sites=["north", "south"])
    assert table["sites"] == ["north", "south"]
    cells = {model: [(cell["share"], cell["home"]) for cell in line] for model, line in table["lines"]}
    assert cells == {
        "federated": [(1.0, False), (0.75, False)], "local:north": [(0.5, True), (0.0, False)],
    }  # fmt: skip


def test_where_lower_is_better_the_lowest_is_shaded_most():
    rows = [*four("hd95_mm"), result(0.8)]
    (ours, alone) = matrix_of(rows, "hd95_mm", sites=["north", "south"])["lines"]
    assert [cell["share"] for cell in ours[1] + alone[1]] == [0.0, 0.25, 0.5, 1.0]


def test_all_hospitals_together_stand_for_those_too_small_to_be_shown():
    pooled = [result(0.8, model=model, site="all") for model in ("federated", "local:north")]
    rows = [*four(), *pooled]
    assert matrix_of(rows, sites=["north", "south"])["sites"] == ["north", "south"]
    assert matrix_of(rows, sites=["north", "south", "east"])["sites"] == ["north", "south", "all"]
    assert matrix_of(four(), sites=["north", "south", "east"])["sites"] == ["north", "south"]


def test_a_single_model_or_fewer_than_four_values_need_no_matrix():
    assert matrix_of(four()[:2], sites=["north", "south"]) is None
    assert matrix_of(four()[:3], sites=["north", "south"]) is None


def test_every_metric_of_the_federated_model_is_listed_by_rank():
    rows = [
        result(5.0, metric="hd95_mm"), result(0.8), result(0.7, structure="liver"), result(0.9, site="west"),
        result(10.0, metric="patients"), result(0.2, model="pooled"), result(0.1, group="sex=F"),
    ]  # fmt: skip
    run = run_of(RunFacts(held_out=["west"]), rows=rows)
    table = measures(run, focus_of(run))
    assert table["sites"] == ["west", "north"]
    assert table["structures"] == [
        (None, [("dice", [rows[3], rows[1]]), ("hd95_mm", [None, rows[0]])]),
        ("liver", [("dice", [None, rows[2]])]),
    ]


def test_metrics_at_a_time_are_ordered_by_the_time_as_a_number():
    rows = [result(0.1, metric=f"brier@{time}") for time in (90, 365, 1000)] + [result(0.7, metric="c_index")]
    run = run_of(rows=rows[::-1])
    ((_, lines),) = measures(run, focus_of(run))["structures"]
    assert [metric for metric, _ in lines if "@" in metric] == ["brier@90", "brier@365", "brier@1000"]


def test_subgroups_stand_beside_their_gap_to_the_others():
    female, gap = result(0.7, group="age_band=80+"), result(-0.1, group="age_band=80+", against="others")
    noise = result(-0.1, group="condition=noise of 10 %", against="unchanged")
    hidden = [result(None, group="sex=F"), result(None, group="sex=M")]
    run = run_of(rows=[result(0.8), female, gap, noise, *hidden])
    (table,) = subgroup_tables(run, focus_of(run))
    assert (table["site"], table["attribute"], table["metric"]) == ("north", "age band", "dice")
    assert table["lines"] == [{"name": "80+", "row": female, "gap": gap}]
