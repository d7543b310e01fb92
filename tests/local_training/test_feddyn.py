"""FedDyn on quadratics, with every step computed by hand."""

from __future__ import annotations

import pytest
import torch
from quadratics import CENTRES, JOINT, RATE, ROUNDS, STEPS, federated

from medfed.aggregation.feddyn import FedDyn as FedDynRule
from medfed.aggregation.scaffold import Scaffold as ScaffoldRule
from medfed.local_training.feddyn import FedDyn
from medfed.local_training.scaffold import Scaffold

torch.set_num_threads(1)


def test_feddyn() -> None:
    # Algorithm 1 with the paper's h, which our hub does not store: theta = mean theta_k - h / alpha.
    alpha, w, h = 0.5, 0.0, 0.0
    known = dict.fromkeys(CENTRES, 0.0)
    for _ in range(ROUNDS):
        models = []
        for site, (centre, curvature) in CENTRES.items():
            x = w
            for _ in range(STEPS):
                x -= RATE * (curvature * (x - centre) - known[site] + alpha * (x - w))
            known[site] -= alpha * (x - w)
            models.append(x)
        h -= alpha / 2 * sum(model - w for model in models)
        w = sum(models) / 2 - h / alpha
    assert federated(FedDyn(alpha=alpha), FedDynRule())[0] == pytest.approx(w, rel=1e-12)


def test_feddyn_and_scaffold_end_at_the_joint_minimum_where_fedavg_does_not() -> None:
    assert abs(federated(None, rounds=100)[0] - JOINT) > 0.1
    assert federated(FedDyn(alpha=0.5), FedDynRule(), rounds=100)[0] == pytest.approx(JOINT, abs=1e-6)
    assert federated(Scaffold(option="I"), ScaffoldRule(), rounds=100)[0] == pytest.approx(JOINT, abs=1e-6)
