"""The survival study whole: from the hospitals' tables to the report, and the predictions of its model."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from medfed.evaluation import survival
from medfed.evaluation.rows import read_cases, read_rows
from medfed.pipeline import predict
from medfed.pipeline import train as run

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "sample_data" / "survival" / "university.csv"


@pytest.mark.slow
def test_a_survival_study_from_its_tables_to_its_report(tmp_path):
    short = ["train.rounds=3", "train.epochs=4", "evaluation.pooled_model=false", "evaluation.draws=200"]
    done = run.train(ROOT / "configs" / "survival.yaml", out=tmp_path / "run", overrides=short)
    result = {
        (row.site, row.metric, row.model, row.against): row
        for row in read_rows(done.rows)
        if row.group is None and row.split == "test"
    }
    whole = result["university", "c_index", "federated", None]
    with TABLE.open(newline="") as file:
        patients = list(csv.DictReader(file))
    assert whole.n == len(patients)
    assert whole.low < whole.value < whole.high
    died = sum(row["died"] == "1" for row in patients)
    assert result["university", "events", "federated", None].value == died

    # Brier scores at three times and over them, and both against a hospital's own model, paired by patient.
    times = [float(at) for at in json.loads((done.path / "baselines.json").read_text())["federated"]]
    assert all(0 < result["university", f"brier@{at:g}", "federated", None].value < 0.3 for at in times)
    for metric in ("c_index", "integrated_brier"):
        alone = result["university", metric, "federated", "local:east"]
        theirs = result["university", metric, "local:east", None].value
        assert alone.value == pytest.approx(result["university", metric, "federated", None].value - theirs)
        assert 0 <= alone.p <= 1
    groups = {row.group for row in read_rows(done.rows) if row.site == "university" and row.value is not None}
    assert {"sex=F", "sex=M", "age_band=60-79"} <= groups

    text = done.report.read_text()
    assert f"patients with {died} events" in text
    assert "Brier score at" in text
    assert "(months)" in text
    assert "Tables stay in their hospital" in text

    # What is predicted for a patient is what was measured: the risk, and exp(-H(t) exp(risk)).
    out = predict.predict(done, TABLE, tmp_path / "out", name="university")
    with (out / predict.TABLE).open(newline="") as file:
        lines = {line["case"]: line for line in csv.DictReader(file)}
    baseline = json.loads((done.path / "baselines.json").read_text())["federated"]
    cases = [c for c in read_cases(done.cases) if c.site == "university" and c.model == "federated"]
    risks = {c.case: c.value for c in cases if c.metric == "risk" and c.condition is None}
    assert {case: float(line["log risk"]) for case, line in lines.items()} == pytest.approx(risks)
    for at, hazard in baseline.items():
        for case, line in lines.items():
            expected = math.exp(-hazard * math.exp(risks[case]))
            assert float(line[f"survival beyond {at}"]) == pytest.approx(expected)


def test_a_hopeless_risk_has_no_chance_and_no_overflow():
    assert survival.survival_probability(0.5, 1e6) < 1e-300
    assert survival.survival_probability(0.0, 3.0) == 1.0
