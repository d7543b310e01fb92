"""What a hub believes of a site's results: a known metric, its range, and how many patients."""

from __future__ import annotations

import msgspec
import pytest

from medfed.evaluation.metrics import MetricFamily, families
from medfed.evaluation.row_checks import (
    StudyMeasures,
    known_metric,
    measures_of,
    plausible_patients,
    plausible_scores,
    row_error,
)
from medfed.evaluation.rows import Row
from medfed.registry import kinds


@pytest.mark.parametrize(
    "bound, examples, most",
    [(10**6, 120, 1200), (10**6, 7, 1000), (500, 120, 500), (10**6, None, 10**6), (10**6, 0, 10**6)],
)
def test_a_site_has_not_many_times_more_patients_than_training_cases(bound, examples, most):
    assert plausible_patients(bound, examples) == most


def test_a_score_outside_its_metrics_range_is_left_out_with_the_reason():
    sent = {
        "val/dice": 1.2,
        "val/personal/dice": -0.5,
        "val/auroc": 1.0 + 5e-7,  # a rounding
        "val/loss": 40.0,  # no metric has this name: a loss has no range
        "train/dice": 7.0,  # no score of validation
        "val/c_index": 0.5,
    }
    accepted, notes = plausible_scores(sent, sent)
    assert accepted == {name: sent[name] for name in ("val/auroc", "val/loss", "train/dice", "val/c_index")}
    assert notes == (
        "a score is left out: val/dice: 1.2 is outside the metric's range",
        "a score is left out: val/personal/dice: -0.5 is outside the metric's range",
    )


def test_a_scores_name_cannot_write_to_a_terminal():
    _, (note,) = plausible_scores({"val/\x1b[31m/dice": 2.0}, ["val/\x1b[31m/dice"])
    assert note == "a score is left out: val/\\x1b[31m/dice: 2 is outside the metric's range"


def test_a_number_that_the_study_does_not_declare_is_left_out_and_named():
    sent = {"val/dice": 0.9, "train/loss": 0.4, **{f"val/\x1b{number}": 1.0 for number in range(7)}}
    accepted, notes = plausible_scores(sent, {"train/loss", "val/auroc"})
    assert accepted == {"train/loss": 0.4}
    assert notes == (
        "numbers that the study does not declare are left out: val/\\x1b0, val/\\x1b1, val/\\x1b2, "
        "val/\\x1b3, val/\\x1b4 and 3 more",
    )


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("dice", True),
        ("nsd_voxel_2mm", True),
        ("brier@365", True),
        ("patients", True),
        ("brier@", False),
        ("brier@nan", False),
        ("brier@x", False),
        ("nsd_", False),
        ("Dice", False),
        ("dice ", False),
        ("", False),
    ],
)
def test_a_metric_is_known_by_exactly_the_name_that_a_family_computes(name, known):
    assert (known_metric(name) is not None) is known


ROW = Row(
    round=3, site="west", split="test", model="federated", metric="dice", value=0.81, low=0.7, high=0.9, n=16
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"n": 40}, None),
        ({"low": None, "high": None}, None),
        ({"value": 1.0 + 5e-7, "high": 1.0 + 5e-7}, None),
        ({"n": 41}, "it is of 41 patients, this site may have 1 to 40 in a split"),
        ({"n": None}, "it does not say of how many patients it is"),
        ({"against": "pooled"}, "a site reports the federated and the untrained model"),
        ({"low": 0.95}, "its interval runs from 0.95 to 0.9"),
        ({"high": 1.1}, "1.1 is outside the metric's range"),
        ({"metric": "patients", "value": 15.0, "low": None, "high": None}, "it counts 15 patients among 16"),
        ({"group": "sex"}, "its group is not of the form attribute=value"),
        ({"metric": "hd95_mm", "value": 1e12, "high": 1e12}, None),
        ({"metric": "hd95_mm", "high": 1.1e12}, "1.1e+12 is outside the metric's range"),
        ({"metric": "volume_difference_ml", "low": -1e308}, "-1e+308 is outside the metric's range"),
        ({"metric": "missed", "value": 16.0, "low": None, "high": None}, None),
        ({"metric": "missed", "value": 17.0, "low": None, "high": None}, "it counts 17 patients among 16"),
        ({"metric": "events", "value": 1.5, "low": None, "high": None}, "it counts 1.5 patients among 16"),
        ({"n": 10**300}, "it is of 1e+300 patients, this site may have 1 to 40 in a split"),
    ],
    ids=str,
)
def test_a_row_is_believed_or_the_reason_is_given(change, why):
    error = row_error(msgspec.structs.replace(ROW, **change), 40, None)
    assert (error is None) is (why is None)
    assert why is None or error.startswith(why)


SEGMENT = StudyMeasures("segment", "segment", structures=frozenset({"liver"}), tolerance_mm=3.0)
CLASSIFY = StudyMeasures("classify", "classify", structures=frozenset())
MULTILABEL = StudyMeasures("multilabel", "multilabel", structures=frozenset({"edema"}))
SURVIVAL = StudyMeasures("survival", "survival", structures=frozenset())
OWN = StudyMeasures("counting", "segment", ("lesions",))
NOT_MEASURED = "this study does not measure it: its task is "


@pytest.mark.parametrize(
    ("measures", "change", "why"),
    [
        (SEGMENT, {}, None),
        (SEGMENT, {"structure": "liver"}, None),
        (SEGMENT, {"structure": "spleen"}, "its structure is none of the study's classes (task.classes)"),
        (SEGMENT, {"metric": "nsd_voxel_3mm"}, None),
        (SEGMENT, {"metric": "nsd_voxel_3px"}, None),
        (
            SEGMENT,
            {"metric": "nsd_voxel_99mm"},
            "this study's surface Dice is nsd_voxel_3mm or nsd_voxel_3px",
        ),
        (SEGMENT, {"metric": "patients", "value": 16.0, "low": None, "high": None}, None),
        (SEGMENT, {"metric": "accuracy"}, f"{NOT_MEASURED}'segment'"),
        (CLASSIFY, {}, f"{NOT_MEASURED}'classify'"),
        (CLASSIFY, {"metric": "auroc"}, None),
        (
            CLASSIFY,
            {"metric": "auroc", "structure": "benign"},
            "its structure is none of the study's classes",
        ),
        (CLASSIFY, {"metric": "c_index"}, f"{NOT_MEASURED}'classify'"),
        (MULTILABEL, {"metric": "auroc", "structure": "edema"}, None),
        (SURVIVAL, {"metric": "c_index"}, None),
        (SURVIVAL, {"metric": "accuracy"}, f"{NOT_MEASURED}'survival'"),
        (OWN, {"metric": "lesion_sensitivity", "structure": "any"}, None),
        (OWN, {"metric": "dice"}, f"{NOT_MEASURED}'counting'"),
    ],
    ids=str,
)
def test_a_known_metric_is_taken_only_where_the_study_measures_it(measures, change, why):
    error = row_error(msgspec.structs.replace(ROW, **change), 40, measures)
    assert (error is None) is (why is None)
    assert why is None or error.startswith(why)


@pytest.mark.parametrize(
    ("task", "classes", "structures"),
    [
        ("segment", ("background", "liver", "spleen"), {"liver", "spleen"}),
        ("classify", ("benign", "malignant"), set()),
        ("classify", ("a", "b", "c"), {"a", "b", "c"}),
        ("multilabel", ("edema", "effusion"), {"edema", "effusion"}),
        ("tabular", ("no", "yes"), set()),
        ("survival", (), set()),
    ],
)
def test_a_result_is_of_the_studys_structures(task, classes, structures):
    measures = measures_of(kinds("tasks")[task], classes, 2.0)
    assert (measures.task, measures.structures) == (task, frozenset(structures))


def test_every_task_is_measured_by_some_family():
    for task in kinds("tasks").values():
        measures = measures_of(task, (), 2.0)
        assert any(
            measures.row_error(msgspec.structs.replace(ROW, metric=metric.name)) is None
            for family in families(MetricFamily)
            for metric in family.metrics
        )
