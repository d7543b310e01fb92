"""FedAvg by hand: plain training loops, no Lightning, no exchange, against the federated
callback under real Trainers.
"""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.federation.callback import FederatedCallback
from medfed.wire.weights import digest, weights_of

SITES = {"north": 12, "south": 20}
ROUNDS, EPOCHS, BATCH, RATE = 3, 2, 4, 0.05


class Net(pl.LightningModule):
    """A small network with batch norm, so that buffers count."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.seen: list[tuple[str, str]] = []

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.seen.append(("validated", digest(weights_of(self))))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)


def data(site: str) -> TensorDataset:
    generator = torch.Generator().manual_seed(sum(site.encode()))
    features = torch.randn(SITES.get(site, 10), 5, generator=generator)
    return TensorDataset(features, (features.sum(1) > 0).long())


def initial() -> Net:
    torch.manual_seed(1)
    return Net()


def by_hand(sites: list[str]) -> dict[str, torch.Tensor]:
    models = {site: initial() for site in sites}
    optimisers = {site: model.configure_optimizers() for site, model in models.items()}
    merged = copy.deepcopy(models[sites[0]].state_dict())
    total = sum(SITES[site] for site in sites)
    for _ in range(ROUNDS):
        for site, model in models.items():
            model.load_state_dict(merged)
            model.train()
            for _ in range(EPOCHS):
                for x, y in DataLoader(data(site), BATCH):
                    optimisers[site].zero_grad()
                    nn.functional.cross_entropy(model.net(x), y).backward()
                    optimisers[site].step()
        for name, tensor in merged.items():
            if tensor.is_floating_point():
                merged[name] = sum(models[s].state_dict()[name] * (SITES[s] / total) for s in sites)
    return {name: tensor for name, tensor in merged.items() if tensor.is_floating_point()}


def federated(sites: list[str], **settings) -> tuple[dict, dict[str, Net]]:
    modules = {site: initial() for site in sites}

    def fit(site: str, exchange) -> None:
        trainer = quiet(ROUNDS * EPOCHS, [FederatedCallback(site, exchange, EPOCHS, **settings)])
        loader = DataLoader(data(site), BATCH)
        trainer.fit(modules[site], loader, DataLoader(data("val"), 5))

    result = medfed.run_federation(
        {site: (lambda exchange, site=site: fit(site, exchange)) for site in sites},
        weights_of(initial()),
        rule=FedAvg(),
        rounds=ROUNDS,
    )
    return result.weights, modules


def quiet(epochs: int, callbacks: list, **settings) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def test_two_sites_equal_fedavg_by_hand():
    weights, _ = federated(["north", "south"])
    expected = by_hand(["north", "south"])
    assert weights.keys() == expected.keys()
    assert any("running_var" in name for name in expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


def test_one_site_equals_no_federation_bit_for_bit():
    weights, modules = federated(["north"])
    alone = initial()
    quiet(ROUNDS * EPOCHS, []).fit(alone, DataLoader(data("north"), BATCH), DataLoader(data("val"), 5))
    assert digest(weights) == digest(weights_of(alone))
    assert digest(weights_of(modules["north"])) == digest(weights_of(alone))


def test_what_is_validated_is_what_the_hub_holds():
    weights, modules = federated(["a", "b", "c", "d"])
    for module in modules.values():
        assert module.seen[-1] == ("validated", digest(weights))


@pytest.mark.parametrize("order", [["north", "south"], ["south", "north"]])
def test_the_order_of_sites_changes_no_bit(order):
    assert digest(federated(order)[0]) == digest(federated(["north", "south"])[0])
