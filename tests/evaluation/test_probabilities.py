"""Temperature scaling of case rows, and histograms that may leave a hospital."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from medfed.evaluation import calibration, classification
from medfed.evaluation.patients import SummarySettings, by_patient, class_predictions
from medfed.evaluation.probabilities import score_histograms, temperature_scaled
from medfed.evaluation.rows import CaseRow

sys.path.insert(0, str(Path(__file__).parent))
from case_rows import class_rows


def rows_of(split, probabilities, targets, model="federated"):
    return [
        CaseRow(
            model=model,
            site="north",
            split=split,
            case=f"{split}{number}",
            patient=f"{split}{number}",
            metric="probability",
            structure=name,
            value=float(value),
            target=float(place == target),
        )
        for number, (line, target) in enumerate(zip(probabilities, targets, strict=True))
        for place, (name, value) in enumerate(zip(("healthy", "disease"), line, strict=True))
    ]


def overconfident(patients, seed):
    """Outcomes that follow p, and probabilities that claim its logit three times over."""
    generator = np.random.default_rng(seed)
    logit = generator.normal(0, 1.5, patients)
    targets = (generator.random(patients) < 1 / (1 + np.exp(-logit))).astype(int)
    claimed = 1 / (1 + np.exp(-3 * logit))
    return np.stack([1 - claimed, claimed], axis=1), targets


def test_the_temperature_comes_from_validation_and_undoes_overconfidence_on_test_patients():
    cases = rows_of("val", *overconfident(4000, 0)) + rows_of("test", *overconfident(2000, 1))
    scaled, temperatures = temperature_scaled(cases, ["healthy", "disease"])
    assert temperatures["federated"] == pytest.approx(3.0, rel=0.1)
    p, y = class_predictions(
        by_patient([case for case in scaled if case.split == "test"]), ["healthy", "disease"]
    )
    raw, _ = class_predictions(
        by_patient([case for case in cases if case.split == "test"]), ["healthy", "disease"]
    )
    assert p.sum(axis=1) == pytest.approx(1)
    assert calibration.calibration(p[:, 1], y == 1).slope.value == pytest.approx(1.0, abs=0.15)
    assert calibration.calibration(raw[:, 1], y == 1).slope.value < 0.5
    ones = np.ones((1, len(y)))
    assert classification.auroc_of(p[:, 1], y == 1)(ones) == pytest.approx(
        classification.auroc_of(raw[:, 1], y == 1)(ones)
    )


def test_a_model_without_validation_patients_stays_as_it_is():
    cases = rows_of("test", *overconfident(20, 1))
    assert temperature_scaled(cases, ["healthy", "disease"]) == (cases, {})


def test_histograms_are_made_a_site_and_hold_no_small_bin():
    cases = [row for i in range(40) for row in class_rows(f"p{i}", i / 40, i % 3 == 0)]
    (histograms,) = score_histograms(
        cases, SummarySettings(round=2, seed=0, classes=["healthy", "disease"], min_patients=5)
    )
    assert all(cell.n >= 5 for cell in histograms.bins)
    assert histograms.positives == 14
