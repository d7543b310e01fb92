"""Sites with quadratic losses, whose training steps can be computed by hand."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.federation.callback import FederatedCallback

torch.set_num_threads(1)

# Centre and curvature of a site's loss h / 2 (w - m)^2. The joint minimum is (1 * 2 + 3 * -1) / 4 = -0.25.
CENTRES = {"a": (2.0, 1.0), "b": (-1.0, 3.0)}
JOINT = -0.25
RATE, STEPS, ROUNDS = 0.1, 4, 5


class Quadratic(pl.LightningModule):
    def __init__(self, centre: float, curvature: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.centre, self.curvature = centre, curvature

    def training_step(self, batch, index):
        return (self.curvature / 2 * (self.w - self.centre) ** 2).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def fit(module, callback, epochs: int, **trainer) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loader = DataLoader(TensorDataset(torch.zeros(STEPS, 1)), 1)
    pl.Trainer(max_epochs=epochs, callbacks=[callback], accelerator="cpu", **quiet, **trainer).fit(
        module, loader
    )


def federated(local, rule=None, sites=CENTRES, rounds=ROUNDS, start=0.0, **settings):
    """Return the final weight, and the weight of each site's own model."""
    modules = {name: Quadratic(*what) for name, what in sites.items()}
    callbacks = {}

    def site(name):
        def work(exchange):
            callbacks[name] = FederatedCallback(name, exchange, 1, local=local)
            fit(modules[name], callbacks[name], rounds, **settings)

        return work

    first = {"w": torch.tensor([start], dtype=torch.float64)}
    final = medfed.run_federation({n: site(n) for n in sites}, first, rule=rule or FedAvg(), rounds=rounds)
    own = {name: callbacks[name].personalised_weights(modules[name]) for name in sites}
    module_w = {name: float(module.w.detach()) for name, module in modules.items()}
    return float(final.weights["w"]), {n: module_w[n] if o is None else float(o["w"]) for n, o in own.items()}
