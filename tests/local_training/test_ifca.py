"""IFCA's sites and hub on quadratics, with every step computed by hand."""

from __future__ import annotations

import pytest
import torch
from quadratics import RATE, ROUNDS, STEPS, federated

from medfed.aggregation.ifca import IFCA as IFCARule
from medfed.local_training.ifca import IFCA

torch.set_num_threads(1)

GROUPS = {"a": (2.0, 1.0), "b": (2.2, 1.0), "c": (-3.0, 1.0), "d": (-3.4, 1.0)}


class Started(IFCARule, tag="started", frozen=True):
    """IFCA with two models that start at given weights."""

    def init(self, weights):
        return {"cluster-00": {"w": weights["w"] + 0.5}, "cluster-01": {"w": weights["w"] - 0.5}}


def test_ifca() -> None:
    models = [0.5, -0.5]
    for _ in range(ROUNDS):
        trained: dict[int, list[float]] = {0: [], 1: []}
        for centre, curvature in GROUPS.values():
            best = min((0, 1), key=lambda k: curvature / 2 * (models[k] - centre) ** 2)
            x = models[best]
            for _ in range(STEPS):
                x -= RATE * curvature * (x - centre)
            trained[best].append(x)
        models = [sum(t) / len(t) if t else m for t, m in zip(trained.values(), models, strict=True)]
    w, own = federated(IFCA(), Started(), sites=GROUPS)
    expected = {"a": models[0], "b": models[0], "c": models[1], "d": models[1]}
    assert own == pytest.approx(expected, rel=1e-12)
    assert w == pytest.approx(sum(models) / 2, rel=1e-12)
