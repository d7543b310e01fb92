"""What a report is about: the best headline metric, first on test patients, first at held-out hospitals."""

from __future__ import annotations

from medfed.evaluation.report.focus import Focus, counted_of_those_concerned, focus_of, focus_on
from medfed.runs.facts import RunFacts

from .result_rows import result, run_of


def test_the_best_ranked_headline_metric_is_taken_before_another():
    # Dice has rank 100, the c-index 500; the distance is no headline.
    rows = [result(3.0, metric="hd95_mm"), result(0.7, metric="c_index"), result(0.8)]
    assert focus_on(rows, ()) == Focus("dice", None, "test", 1, ["north"])
    assert focus_on(rows[:1], ()) is None


def test_test_patients_come_before_a_better_metric_on_validation_patients():
    rows = [result(0.8, split="val"), result(0.7, metric="c_index")]
    assert focus_on(rows, ()).metric == "c_index"
    assert focus_on(rows[:1], ()).split == "val"


def test_suppressed_values_subgroups_differences_and_other_models_do_not_decide():
    rows = [
        result(None),
        result(0.8, group="sex=F"),
        result(0.1, against="local:north", p=0.5),
        result(0.8, model="local:north"),
    ]
    assert focus_on(rows, ()) is None
    assert focus_on(rows, (), "local:north").metric == "dice"


def test_only_the_last_round_with_a_value_counts():
    rows = [result(0.5, site="south"), result(0.8, round=3), result(None, round=4)]
    assert focus_on(rows, ()) == Focus("dice", None, "test", 3, ["north"])


def test_held_out_hospitals_come_first_then_the_pool_and_single_hospitals_only_without_both():
    rows = [result(0.8, site=site) for site in ("south", "north", "all", "west")]
    assert focus_on(rows, ("west", "elsewhere")).places == ["west", "all"]
    assert focus_on(rows[:2], ()).places == ["north", "south"]
    assert focus_of(run_of(RunFacts(held_out=["west"]), rows=rows)).places == ["west", "all"]


def test_the_mean_over_structures_comes_before_a_single_structure():
    rows = [result(0.7, structure="tumour"), result(0.9, structure="liver")]
    assert focus_on(rows, ()).structure == "liver"
    assert focus_on([*rows, result(0.8)], ()).structure is None


def test_rows_are_found_by_hospital_model_and_comparison():
    ours, gone = result(0.8), result(None, model="pooled")
    versus = result(0.1, against="pooled")
    female = result(0.7, group="sex=F")
    other = [result(0.8, split="val"), result(0.8, round=2), result(0.8, structure="tumour")]
    rows = focus_on([ours], ()).rows([ours, gone, versus, female, *other])
    assert rows.get("north", "federated") is ours
    assert rows.get("north", "federated", against="pooled") is versus
    assert rows.get("north", "federated", group="sex=F") is female
    assert rows.get("north", "pooled") is gone
    assert rows.valued("north", "pooled") is None
    assert rows.valued("south", "federated") is None
    assert (rows.sites("federated"), rows.groups("sex=")) == (["north"], ["sex=F"])


def test_of_rows_that_agree_in_everything_the_first_is_taken():
    first, second = result(0.8), result(0.9)
    assert focus_on([first], ()).rows([first, second]).get("north", "federated") is first


def test_a_count_is_of_the_patients_in_whom_it_can_happen():
    """Only in the 12 with a lesion can it be missed, only in the 4 without it invented."""
    rows = [
        result(0.7, structure="lesion", n=12),
        result(0.25, structure="lesion", metric="rightly_empty", n=4),
        *(result(1.0, structure="lesion", metric=name, n=16) for name in ("missed", "invented", "absent")),
    ]
    counted = {row.metric: row.n for row in counted_of_those_concerned(rows)}
    assert counted == {"dice": 12, "rightly_empty": 4, "missed": 12, "invented": 4, "absent": 4}
    # Where the Dice is withheld, nothing says how many have the structure.
    hidden = [result(None, structure="lesion", n=2), result(0.0, structure="lesion", metric="missed", n=3)]
    assert [row.n for row in counted_of_those_concerned(hidden)] == [2, 3]
    elsewhere = [result(0.7, structure="lesion", n=12), result(0.0, metric="missed", structure="liver", n=16)]
    assert [row.n for row in counted_of_those_concerned(elsewhere)] == [12, 16]
