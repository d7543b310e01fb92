"""FedPer and FedRep keep the head at each site; every step is computed by hand."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from quadratics import RATE, ROUNDS, fit
from torch import nn

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import StudyError
from medfed.federation.callback import FederatedCallback
from medfed.local_training.fedper import FedPer
from medfed.local_training.fedrep import FedRep
from medfed.wire.weights import weights_of

torch.set_num_threads(1)


class TwoLayers(pl.LightningModule):
    """A body b and a head c with loss ((b - 1)^2 + (c - m)^2) / 2 and the site's own m."""

    def __init__(self, centre: float) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for layer in (self.body, self.head):
            nn.init.zeros_(layer.weight)
        self.centre = centre

    def training_step(self, batch, index):
        return ((self.body.weight - 1) ** 2 + (self.head.weight - self.centre) ** 2).sum() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE, weight_decay=0.1)


@pytest.mark.parametrize(
    "method, head_steps, body_steps", [(FedPer(), 4, 4), (FedRep(), 2, 2), (FedRep(first=0.75), 3, 1)]
)
def test_fedper_trains_both_parts_and_fedrep_in_turn_and_the_head_stays(
    method, head_steps: int, body_steps: int
) -> None:
    modules = {"a": TwoLayers(2.0), "b": TwoLayers(-1.0)}

    def site(name):
        return lambda exchange: fit(modules[name], FederatedCallback(name, exchange, 1, local=method), ROUNDS)

    start = {"body.weight": torch.zeros(1, 1)}
    final = medfed.run_federation({n: site(n) for n in modules}, start, rule=FedAvg(), rounds=ROUNDS)

    def after(centre: float, steps: int) -> float:
        w = 0.0
        for _ in range(ROUNDS * steps):
            w -= RATE * ((w - centre) + 0.1 * w)
        return w

    assert set(final.weights) == {"body.weight"}
    assert float(final.weights["body.weight"]) == pytest.approx(after(1.0, body_steps), rel=1e-5)
    for module in modules.values():
        assert float(module.head.weight.detach()) == pytest.approx(after(module.centre, head_steps), rel=1e-5)


def test_a_head_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StudyError, match=r"keep_local: 'hed' keeps nothing: .* .it has 'body', 'head'"):
        weights_of(TwoLayers(0.0), ["hed"])
