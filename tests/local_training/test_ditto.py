"""Ditto on quadratics, with every step computed by hand."""

from __future__ import annotations

import pytest
import torch
from quadratics import CENTRES, RATE, ROUNDS, STEPS, federated

from medfed.local_training.ditto import Ditto

torch.set_num_threads(1)


def test_ditto() -> None:
    pull = 0.7
    w, own = 0.0, dict.fromkeys(CENTRES, 0.0)
    for _ in range(ROUNDS):
        models = []
        for site, (centre, curvature) in CENTRES.items():
            x = w
            for _ in range(STEPS):
                x -= RATE * curvature * (x - centre)
                own[site] -= RATE * (curvature * (own[site] - centre) + pull * (own[site] - w))
            models.append(x)
        w = sum(models) / 2
    final, personal = federated(Ditto(pull=pull))
    assert final == pytest.approx(w, rel=1e-12)
    assert personal == pytest.approx(own, rel=1e-12)


def test_ditto_with_accumulated_gradients_takes_half_as_many_steps_for_both_models() -> None:
    w, v = 0.0, 0.0
    for _ in range(ROUNDS):
        x = w
        for _ in range(STEPS // 2):
            x -= RATE * (x - 2.0)
            v -= RATE * ((v - 2.0) + 0.7 * (v - w))
        w = x
    final, personal = federated(Ditto(pull=0.7), sites={"a": (2.0, 1.0)}, accumulate_grad_batches=2)
    assert (final, personal["a"]) == pytest.approx((w, v), rel=1e-12)


def test_ditto_without_a_pull_is_the_hospitals_own_model_and_with_a_strong_one_the_federated() -> None:
    for site, (centre, curvature) in CENTRES.items():
        alone = centre * (1 - (1 - RATE * curvature) ** (ROUNDS * STEPS))
        assert federated(Ditto(pull=0.0))[1][site] == pytest.approx(alone, rel=1e-12)
    w, near = federated(Ditto(pull=6.0), rounds=40)
    _, far = federated(Ditto(pull=0.1), rounds=40)
    assert all(abs(near[site] - w) < abs(far[site] - w) for site in CENTRES)
