"""Temperature scaling of case rows, and the baseline hazard that turns Cox risks into chances of survival."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medfed.evaluation import calibration, classification, survival
from medfed.evaluation.patients import by_patient, class_predictions
from medfed.evaluation.probabilities import temperature_scaled
from medfed.evaluation.rows import CaseRow
from medfed.pipeline import baseline
from medfed.pipeline.factory import hospital_of
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study


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


def test_breslow_by_hand():
    """Times 1 (event), 2 (censored), 3 (event) at relative risks 1, 2, 4: jumps 1 / 7 and 1 / 4."""
    risks = [0.0, math.log(2), math.log(4)]
    found = survival.baseline_hazard(risks, [1.0, 2.0, 3.0], [1, 0, 1], [0.5, 1.0, 2.5, 3.0])
    assert found == pytest.approx([0.0, 1 / 7, 1 / 7, 1 / 7 + 1 / 4])


def test_breslow_equals_lifelines():
    lifelines = pytest.importorskip("lifelines")
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    x = generator.normal(0, 1, 200)
    times = generator.exponential(np.exp(-x)) + 0.01
    censored = generator.exponential(2.0, 200)
    table = pandas.DataFrame({"x": x, "time": np.minimum(times, censored), "event": times <= censored})
    model = lifelines.CoxPHFitter().fit(table, "time", "event")
    risks = model.predict_log_partial_hazard(table).to_numpy()
    # At event times, since lifelines draws a line between its steps.
    at = sorted(table["time"][table["event"]])[10:120:40]
    expected = model.predict_survival_function(table, times=at).to_numpy()
    hazard = survival.baseline_hazard(risks, table["time"], table["event"], at)
    found = np.exp(-np.array(hazard)[:, None] * np.exp(risks)[None])
    assert found == pytest.approx(expected, abs=1e-6)


def test_horizons_are_quartiles_to_two_digits_and_none_where_nothing_happened(tmp_path):
    assert baseline.horizons([101.0, 202.0, 303.0, 404.0, 505.0, 9.0], [1, 1, 1, 1, 1, 0]) == [200, 300, 400]
    assert baseline.horizons([1.0, 2.0], [0, 0]) == []
    baseline.write_baseline_file(RunFolder(tmp_path), {"federated": {200.0: 0.25, 300.0: 0.5}})
    assert baseline.read_baselines(RunFolder(tmp_path)) == {"federated": {200.0: 0.25, 300.0: 0.5}}
    assert baseline.read_baselines(RunFolder(tmp_path / "nowhere")) == {}


def test_labels_beyond_the_bound_are_read_again_and_not_kept(tiny, monkeypatch):
    from medfed.evaluation import inference as measure

    study = read_study(tiny / "tiny.yaml")
    hospital = hospital_of(study, "north", study.sites["north"])
    monkeypatch.setattr(measure, "MAX_CACHED_BYTES", 2 * 16**3)
    labels = measure.LabelCache(hospital)
    cases = [case for split in ("train", "val", "test") for case in hospital.data.cases(split)]
    first = [labels.reference(case)[0] for case in cases]
    assert len(labels._labels) == 2
    assert all(
        np.array_equal(labels.reference(case)[0], label) for case, label in zip(cases, first, strict=True)
    )
    assert labels._bytes <= 2 * 16**3
