"""The metrics of several findings, against scikit-learn on the labelled patients of each finding."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from medfed.errors import DataError
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.groups import group_of
from medfed.evaluation.patients import SummarySettings, by_patient
from medfed.evaluation.probabilities import operating_points, score_histograms, temperature_scaled
from medfed.evaluation.robustness import robustness
from medfed.evaluation.subgroups import subgroups

from .case_rows import image_row

NAMES = ("effusion", "nodule", "rare")
SETTINGS = SummarySettings(round=1, seed=0, classes=NAMES, min_patients=5, draws=200)


def finding_rows(patient, values, targets, **more):
    return [
        image_row(
            patient, float(value), "finding", structure=name,
            target=None if np.isnan(target) else float(target), **more,
        )
        for name, value, target in zip(NAMES, values, targets, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data():
    """80 patients: the first finding is known in each, the second in half of them, the third in two."""
    generator = np.random.default_rng(0)
    y = (generator.random((80, 3)) < (0.4, 0.5, 0.02)).astype(float)
    y[:, 2] = np.arange(80) < 2
    p = 1 / (1 + np.exp(-generator.normal(2 * y - 1, 1.5)))
    y[40:, 1] = np.nan
    return p, y


def rows_of(data, **more):
    p, y = data
    return [row for i in range(len(p)) for row in finding_rows(f"p{i:02}", p[i], y[i], **more)]


def value(rows, metric, structure=None):
    (row,) = [r for r in rows if (r.metric, r.structure) == (metric, structure)]
    return row


def test_each_finding_is_measured_on_the_patients_in_whom_it_was_labelled(data) -> None:
    p, y = data
    rows = aggregate(rows_of(data), SETTINGS)
    for number, (name, labelled) in enumerate((("effusion", 80), ("nodule", 40))):
        some = ~np.isnan(y[:, number])
        truth, score = y[some, number], p[some, number]
        auroc = value(rows, "auroc", name)
        assert (auroc.value, auroc.n) == (pytest.approx(sk.roc_auc_score(truth, score)), labelled)
        assert auroc.low < auroc.value < auroc.high
        assert value(rows, "auprc", name).value == pytest.approx(sk.average_precision_score(truth, score))
        assert value(rows, "brier", name).value == pytest.approx(sk.brier_score_loss(truth, score))
        assert value(rows, "sensitivity", name).value == pytest.approx(sk.recall_score(truth, score >= 0.5))
        assert value(rows, "specificity", name).value == pytest.approx(
            sk.recall_score(1 - truth, score < 0.5)
        )
        assert value(rows, "prevalence", name).value == pytest.approx(truth.mean())


def test_means_are_over_findings_with_enough_patients_and_say_of_how_many(data) -> None:
    p, y = data
    rows = aggregate(rows_of(data), SETTINGS)
    for metric, score in (("auroc", sk.roc_auc_score), ("auprc", sk.average_precision_score)):
        row = value(rows, metric)
        expected = np.mean([score(y[:, 0], p[:, 0]), score(y[:40, 1], p[:40, 1])])
        assert row.value == pytest.approx(expected)
        assert row.low < row.value < row.high
        assert "mean of 2 of 3 findings" in row.note
    # The third finding is in two patients: what depends on its outcome is not shown.
    assert value(rows, "auroc", "rare").value is None
    assert "fewer than 5 patients" in value(rows, "auroc", "rare").note
    # The Brier score is of each patient's labelled findings.
    errors = np.nanmean((p - y) ** 2, axis=1)
    assert value(rows, "brier").value == pytest.approx(errors.mean())


def test_thresholds_come_from_validation_patients_of_each_finding(data) -> None:
    p, y = data
    validation = rows_of(data, split="val")
    points = operating_points(validation, NAMES)["federated"]
    for number in (0, 1):
        some = ~np.isnan(y[:, number])
        false, true, _ = sk.roc_curve(y[some, number], p[some, number])
        called = p[some, number] >= points.thresholds[number]
        hits, misses = called[y[some, number] == 1].mean(), called[y[some, number] == 0].mean()
        assert hits - misses == pytest.approx((true - false).max())
    few = [row for row in validation if row.structure != "rare"]
    few += [row for row in rows_of((p, np.zeros_like(y)), split="val") if row.structure == "rare"]
    points = operating_points(few, NAMES)["federated"]
    assert (points.thresholds[2], points.unfixed) == (0.5, {2})
    rows = [row for row in aggregate([*few, *rows_of(data)], SETTINGS) if row.split == "test"]
    assert "on 80 validation patients" in value(rows, "sensitivity", "effusion").method


def test_a_finding_that_no_patient_was_labelled_for_has_no_row(data) -> None:
    p, y = data[0], data[1].copy()
    y[:, 2] = np.nan
    rows = aggregate(rows_of((p, y)), SETTINGS)
    assert not [row for row in rows if row.structure == "rare"]
    assert "mean of 2 of 3 findings" in value(rows, "auroc").note


def test_a_patient_counts_as_with_a_finding_by_the_images_that_show_it() -> None:
    cases = finding_rows("p", (0.9, 0.2, 0.5), (1, 0, np.nan), image=0)
    cases += finding_rows("p", (0.1, 0.4, 0.7), (0, 0, 1), image=1)
    p, y, known = group_of(by_patient(cases), SETTINGS).predictions
    np.testing.assert_allclose(p, [[0.9, 0.3, 0.7]])
    assert y.tolist() == [[True, False, True]]
    assert known.all()


def test_models_are_compared_over_all_findings_and_by_finding(data) -> None:
    p, y = data
    worse = np.clip(p * 0.5 + 0.3 * np.random.default_rng(1).random(p.shape), 0, 1)
    rows = compare([*rows_of(data), *rows_of((worse, y), model="local:north")], SETTINGS)
    errors = [np.nanmean((q - y) ** 2, axis=1) for q in (p, worse)]
    brier = value(rows, "brier")
    assert brier.value == pytest.approx((errors[0] - errors[1]).mean())
    assert 0 < brier.p <= 1
    single = value(rows, "auroc", "effusion")
    expected = sk.roc_auc_score(y[:, 0], p[:, 0]) - sk.roc_auc_score(y[:, 0], worse[:, 0])
    assert single.value == pytest.approx(expected)
    nodule = sk.roc_auc_score(y[:40, 1], p[:40, 1]) - sk.roc_auc_score(y[:40, 1], worse[:40, 1])
    assert value(rows, "auroc").value == pytest.approx((expected + nodule) / 2)
    assert not [row for row in rows if row.structure == "rare"]


def test_subgroups_and_robustness_are_in_the_brier_score(data) -> None:
    p, y = data
    cases = [
        row
        for i in range(80)
        for row in finding_rows(f"p{i:02}", p[i], y[i], attributes={"sex": "FM"[i % 2]})
    ]
    rows = [row for row in subgroups(cases, SETTINGS) if row.against is None]
    errors = np.nanmean((p - y) ** 2, axis=1)
    assert {row.group: row.value for row in rows} == pytest.approx(
        {"sex=F": errors[::2].mean(), "sex=M": errors[1::2].mean()}
    )
    changed = rows_of((p * 0.9, y), condition="noise of 10 %")
    row = value(robustness([*cases, *changed], SETTINGS), "brier")
    assert row.value == pytest.approx(np.nanmean((0.9 * p - y) ** 2, axis=1).mean() - errors.mean())


def test_temperature_and_curves_are_of_labelled_findings(data) -> None:
    p, y = data
    cases = [*rows_of(data, split="val"), *rows_of(data)]
    scaled, temperatures = temperature_scaled(cases, NAMES)
    assert len(scaled) == len(cases)
    temperature = temperatures["federated"]
    logit = np.log(p[0, 0] / (1 - p[0, 0]))
    assert scaled[0].value == pytest.approx(1 / (1 + np.exp(-logit / temperature)))
    curves = {h.structure: (h.positives, h.negatives) for h in score_histograms(cases, SETTINGS)}
    assert curves["nodule"] == ((y[:40, 1] == 1).sum(), (y[:40, 1] == 0).sum())


def test_rows_of_other_findings_are_refused(data) -> None:
    with pytest.raises(DataError, match="rows name the findings"):
        group_of(by_patient(rows_of(data)[:2]), SETTINGS)
