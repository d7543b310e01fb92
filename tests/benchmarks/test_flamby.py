"""FLamby's two tables as benchmarks/flamby.py reads and trains them, against FLamby's
own figures and lifelines.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.models.losses.cox import Cox
from medfed.models.tasks._scores import c_index

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("MEDFED_REAL_DATA", "/nowhere"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        "MEDFED_REAL_DATA" not in os.environ, reason="MEDFED_REAL_DATA names no folder of real data"
    ),
]


@pytest.fixture(scope="module")
def flamby():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import flamby
    finally:
        sys.path.pop(0)
    return flamby


def test_heart_is_prepared_as_flamby_does(flamby):
    centres = flamby.heart(REAL)
    counts = {name: (int(c.training.sum()), int((~c.training).sum())) for name, c in centres.items()}
    assert counts == {
        "cleveland": (199, 104),
        "hungarian": (172, 89),
        "switzerland": (30, 16),
        "va": (85, 45),
    }
    assert {centre.features.shape[1] for centre in centres.values()} == {13}
    # The first row of Cleveland by hand: 63 years, male, pressure 145, cholesterol 233, sugar 1, rate 150, no
    # angina, depression 2.3; then chest pain 2, 3, 4 of typical (1), and ECG 1, 2 of 2.
    assert centres["cleveland"].features[0].tolist() == pytest.approx(
        [63, 1, 145, 233, 1, 150, 0, 2.3, 0, 0, 0, 0, 1]
    )
    held = flamby.z_score(centres["va"])(centres["va"].features[centres["va"].training])
    spread = held.std(0, ddof=1)
    assert np.abs(held.mean(0)).max() < 1e-5
    assert np.allclose(spread[spread > 0], 1, atol=1e-5)


def test_three_sums_of_each_hospital_give_the_normalisation_of_all_together(flamby):
    centres = flamby.heart(REAL)
    together = flamby.pooled(centres)
    middle, spread = flamby.of_all(centres)
    result = (together.features - middle) / spread
    assert result == pytest.approx(flamby.z_score(together)(together.features), abs=2e-4)


def test_brca_has_flambys_regions(flamby):
    centres = flamby.brca(REAL)
    counts = [(int(c.training.sum()), int((~c.training).sum())) for c in centres.values()]
    assert counts == [(248, 63), (156, 40), (164, 42), (129, 33), (129, 33), (40, 11)]
    assert {centre.features.shape[1] for centre in centres.values()} == {39}


def test_cyclic_turns_are_those_of_flambys_generator(flamby):
    # 15 rounds over 4 sites are three whole orders and three places of a fourth: each site has 3 or 4 turns.
    turns = [flamby.cyclic_turns(4, site, 15, 42) for site in range(4)]
    assert sorted(turns) == [3, 4, 4, 4]


@pytest.mark.slow
def test_one_seed_of_fedavg_is_flambys_to_the_patient(flamby):
    # flamby/results/results_benchmark_fed_heart_disease/heart_seed42.csv, FedAvg100: the same first weights,
    # rates and number of updates; only the order of batches differs.
    centres = flamby.heart(REAL)
    model = flamby.run_once(flamby.BENCHMARKS["heart"], flamby.HEART_METHODS["fedavg"], centres, 42)
    scores = flamby.scores(flamby.BENCHMARKS["heart"], model, centres, shared=False)
    theirs = {"cleveland": 79 / 104, "hungarian": 62 / 89, "switzerland": 11 / 16, "va": 28 / 45}
    patients = {"cleveland": 104, "hungarian": 89, "switzerland": 16, "va": 45}
    for name, value in theirs.items():
        assert abs(scores[name] - value) * patients[name] < 1.5, name
    assert abs(scores[flamby.POOLED] - 191 / 254) * 254 < 2.5


# ---------------------------------------------------------------------------------------- survival: lifelines


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_the_cox_losss_minimum_is_lifelines_fit(flamby, ties):
    pytest.importorskip("lifelines")
    import pandas as pd
    from lifelines import CoxPHFitter

    region = flamby.brca(REAL)["region0"]
    chosen = [0, 4, 10]  # age, and two that vary in this region
    features = region.features[region.training][:, chosen].astype(np.float64)
    features[:, 0] /= 10
    # Coarse times, so that there are ties.
    answers = region.answers[region.training].astype(np.float64)
    answers[:, 0] = np.ceil(answers[:, 0] / 180) + 1
    frame = pd.DataFrame(features, columns=["age", "b", "c"]).assign(T=answers[:, 0], E=answers[:, 1])
    x, y = torch.tensor(features), torch.tensor(answers)
    criterion = Cox(ties=ties).build(1)
    weights = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights], lr=1, max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        loss = criterion(x @ weights, y)
        loss.backward()
        return loss

    solver.step(closure)
    events = float(answers[:, 1].sum())
    ours = -events * float(criterion(x @ weights, y))
    if ties == "efron":  # lifelines knows no other way for ties
        fitted = CoxPHFitter().fit(frame, "T", "E")
        assert weights.detach().numpy()[:, 0] == pytest.approx(fitted.params_.to_numpy(), abs=1e-3)
        assert ours == pytest.approx(fitted.log_likelihood_, abs=1e-4)
    else:
        statsmodels = pytest.importorskip("statsmodels.duration.hazard_regression")
        result = statsmodels.PHReg(answers[:, 0], features, status=answers[:, 1], ties="breslow").fit()
        assert weights.detach().numpy()[:, 0] == pytest.approx(result.params, abs=1e-3)
        assert ours == pytest.approx(result.llf, abs=1e-4)


def test_the_c_index_is_lifelines(flamby):
    utils = pytest.importorskip("lifelines.utils")
    for centre in flamby.brca(REAL).values():
        risk = np.round(centre.features[:, 0] / 7)  # ties of risk, too
        time, event = np.ceil(centre.answers[:, 0] / 30), centre.answers[:, 1]
        assert c_index(risk, time, event) == pytest.approx(
            utils.concordance_index(time, -risk, event), abs=1e-12
        )


def test_the_loss_is_flambys_where_no_two_times_are_equal(flamby):
    # FLamby's own formula: sorted by falling time, log-sum-exp of all before minus one's own, times the
    # event; the mean.
    region = flamby.brca(REAL)["region3"]
    drawn = np.random.default_rng(0)
    for _ in range(20):
        rows = drawn.choice(len(region.answers), 8, replace=False)
        risk, (time, event) = drawn.normal(size=8), region.answers[rows].T.astype(np.float64)
        if len(set(time)) < 8:
            continue
        order = np.argsort(-time)
        r, e = risk[order], event[order]
        theirs = np.mean([e[i] * np.log(np.exp(r[: i + 1] - r[i]).sum()) for i in range(8)])
        result = Cox(per="examples", ties="breslow").build(1)(
            torch.tensor(risk)[:, None], torch.tensor(np.stack([time, event], 1))
        )
        assert float(result) == pytest.approx(theirs, rel=1e-9)


def test_a_method_of_the_table_is_a_study_that_medfed_accepts(flamby):
    from medfed.study.validation import validate

    for benchmark in flamby.BENCHMARKS.values():
        for method in benchmark.methods.values():
            sites = {f"s{n}": "x.csv" for n in range(4)} if method.how == "federated" else {"s": "x.csv"}
            validate(flamby.study_of(benchmark, replace(method), sites, 13, 42), "flamby")
