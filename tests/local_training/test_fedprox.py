"""FedProx on quadratics, with every step computed by hand."""

from __future__ import annotations

import pytest
from quadratics import CENTRES, RATE, ROUNDS, STEPS, federated

from medfed.local_training.fedprox import FedProx


def test_fedprox() -> None:
    mu, w = 0.5, 0.0
    for _ in range(ROUNDS):
        models = []
        for centre, curvature in CENTRES.values():
            x = w
            for _ in range(STEPS):
                x -= RATE * (curvature * (x - centre) + mu * (x - w))
            models.append(x)
        w = sum(models) / 2
    assert federated(FedProx(mu=mu))[0] == pytest.approx(w, rel=1e-12)
