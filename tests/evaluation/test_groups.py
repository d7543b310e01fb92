"""Which group suits a model's predictions, and which metrics such a group has."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medfed.evaluation.groups import estimates, group_of, over_structures
from medfed.evaluation.metrics import CaseGroup, ClassGroup, FindingsGroup, SurvivalGroup
from medfed.evaluation.patients import SummarySettings, by_patient

from .case_rows import class_rows, image_row, survivors

SETTINGS = SummarySettings(round=1, seed=0, classes=("healthy", "disease"), min_patients=1, draws=20)


def group(cases):
    return group_of(by_patient(cases), SETTINGS)


def both_findings(patient, first, second):
    values = {"healthy": first, "disease": second}
    return [image_row(patient, v, "finding", structure=name, target=1.0) for name, v in values.items()]


@pytest.mark.parametrize(
    ("cases", "kind"),
    [
        ([image_row("a", 0.5)], CaseGroup),
        (class_rows("a", 0.7, 1), ClassGroup),
        (both_findings("a", 0.5, 0.6), FindingsGroup),
        (survivors("federated", [0.1], [5.0], [1]), SurvivalGroup),
    ],
)
def test_predictions_decide_the_kind_of_group(cases, kind):
    assert type(group(cases)) is kind


def names_of(group):
    return {(estimate.structure, estimate.metric) for estimate in estimates(group)}


def test_two_classes_are_one_question_and_more_are_also_taken_together():
    two = ClassGroup.of([[0.2, 0.8], [0.9, 0.1]], [1, 0], ["a", "b"], SETTINGS.resampling(["n"] * 2))
    assert {structure for structure, _ in names_of(two)} == {None}
    p = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]
    three = ClassGroup.of(p, [0, 1, 2], ["a", "b", "c"], SETTINGS.resampling(["n"] * 3))
    assert {structure for structure, metric in names_of(three) if metric == "auroc"} == {None, "a", "b", "c"}


def test_a_finding_that_nobody_was_labelled_for_has_no_metrics_of_its_own():
    cases = [row for row in both_findings("a", 0.5, 0.6) if row.structure == "healthy"]
    cases.append(image_row("a", 0.6, "finding", structure="disease", target=None))
    structures = {structure for structure, _ in names_of(group(cases))}
    assert structures == {None, "healthy"}


def test_a_patients_mean_over_structures_is_of_those_that_have_a_value():
    cases = [image_row("a", 0.4, structure="liver"), image_row("a", 0.8, structure="tumour")]
    cases += [image_row("b", 0.6, structure="liver"), image_row("b", None, structure="tumour", note="absent")]
    cases += [image_row("c", None, structure=name, note="absent") for name in ("liver", "tumour")]
    values = over_structures(by_patient(cases))
    assert list(values) == [(None, "dice"), ("liver", "dice"), ("tumour", "dice")]
    np.testing.assert_allclose(values[None, "dice"], [0.6, 0.6, math.nan])


def test_a_single_structure_or_a_metric_of_volumes_has_no_mean_over_structures():
    assert list(over_structures(by_patient([image_row("a", 0.4)]))) == [("lesion", "dice")]
    cases = [image_row("a", 2.0, "volume_difference_ml", structure=name) for name in ("liver", "tumour")]
    assert [structure for structure, _ in over_structures(by_patient(cases))] == ["liver", "tumour"]
