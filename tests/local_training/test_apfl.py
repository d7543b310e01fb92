"""APFL on quadratics, with every step computed by hand."""

from __future__ import annotations

import pytest
import torch
from quadratics import CENTRES, RATE, ROUNDS, STEPS, federated

from medfed.local_training.apfl import APFL

torch.set_num_threads(1)


@pytest.mark.parametrize("adaptive", [True, False])
def test_apfl(adaptive: bool) -> None:
    w = 0.0
    own, alpha = dict.fromkeys(CENTRES, 0.0), dict.fromkeys(CENTRES, 0.3)
    for _ in range(ROUNDS):
        models = []
        for site, (centre, curvature) in CENTRES.items():
            x = w
            for _ in range(STEPS):
                a, v = alpha[site], own[site]
                slope = curvature * (a * v + (1 - a) * x - centre)
                own[site] = v - RATE * a * slope
                if adaptive:
                    alpha[site] = min(max(a - RATE * (v - x) * slope, 0.0), 1.0)
                x -= RATE * curvature * (x - centre)
            models.append(x)
        w = sum(models) / 2
    final, personal = federated(APFL(alpha=0.3, adaptive=adaptive))
    assert final == pytest.approx(w, rel=1e-12)
    expected = {site: alpha[site] * own[site] + (1 - alpha[site]) * w for site in CENTRES}
    assert personal == pytest.approx(expected, rel=1e-9)
    assert adaptive == (alpha["a"] != 0.3)
