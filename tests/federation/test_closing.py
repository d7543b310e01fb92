"""A site's last numbers are an update without weights, and the hub's model reaches every rank whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from medfed.errors import QuorumError
from medfed.exchange import MemoryExchange
from medfed.federation.callback import FederatedCallback
from medfed.federation.closing import chosen_before_last, fetch_once, report_numbers, stop_reason
from medfed.federation.egress import Egress
from medfed.federation.round import SiteConnection
from medfed.federation.simulation import run_federation
from medfed.wire.compression.int8 import Int8
from medfed.wire.update import GlobalModel
from medfed.wire.weights import weights_of

MODEL = GlobalModel(
    6, {"w": torch.tensor([1.5])}, final=True, groups={"g": {"w": torch.tensor([2.0])}}, chosen=2
)


def test_the_last_numbers_hold_no_weights_whatever_compresses_updates():
    exchange = MemoryExchange()
    exchange.publish(MODEL)
    egress = Egress(frozenset({"val/dice"}))
    report_numbers(
        SiteConnection("north", exchange, egress=egress, compress=(Int8(),)), MODEL, {"val/dice": 0.5}
    )
    (received,) = exchange.collect(7, ["north"], 1.0)
    assert received.update.evaluation_only
    assert (received.update.round, received.update.scalars) == (7, {"val/dice": 0.5})


def test_a_model_of_the_last_round_is_the_one_that_was_scored():
    assert chosen_before_last(MODEL)  # published as 6, after 5 rounds
    assert not chosen_before_last(GlobalModel(6, {}, chosen=5))
    assert not chosen_before_last(GlobalModel(6, {}))
    assert not chosen_before_last(None)


def test_rank_0_receives_and_the_others_get_every_field_by_broadcast():
    sent = []
    strategy = SimpleNamespace(broadcast=lambda value: sent.append(value) or sent[0])
    exchange = MemoryExchange()
    exchange.publish(MODEL)
    first = fetch_once(
        SimpleNamespace(is_global_zero=True, world_size=2, strategy=strategy),
        SiteConnection("north", exchange),
        6,
    )
    other = fetch_once(SimpleNamespace(is_global_zero=False, world_size=2, strategy=strategy), None, 6)
    for model in (first, other):
        assert (model.round, model.final, model.chosen) == (6, True, 2)
        assert torch.equal(model.weights["w"], MODEL.weights["w"])
        assert torch.equal(model.groups["g"]["w"], MODEL.groups["g"]["w"])


@pytest.mark.parametrize(
    "epoch, reason",
    [
        (6, "reached max_epochs before the study's last round"),
        (2, r"stopped in epoch 2 of 6, for example by Early"),
    ],
)
def test_why_a_site_stopped(epoch, reason):
    assert reason in stop_reason(SimpleNamespace(max_epochs=6, current_epoch=epoch))


class Fewer(torch.utils.data.IterableDataset):
    """Says 40 rows, and yields 4."""

    def __len__(self):
        return 40

    def __iter__(self):
        return iter(torch.ones(4, 2))


class Skipping(pl.LightningModule):
    """Skips the rest of an epoch after two batches, as Lightning allows."""

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.layer, self.skips = torch.nn.Linear(2, 1), skips

    def on_train_batch_start(self, batch, index):
        return -1 if self.skips and index == 2 else None

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("rows, skips, message", [
    (Fewer(), False, "epoch 1 ended after 4 of 40 batches"),
    (torch.ones(6, 2), True, "epoch 1 ended after 2 of 6 batches"),
])  # fmt: skip
def test_an_epoch_that_ends_before_its_merge_says_so_and_is_not_trained_for_nothing(rows, skips, message):
    with pytest.raises(QuorumError, match=f"site 'a': {message}.* are merged after the last one"):
        federate(lambda: Skipping(skips), rows)


class Paired(Skipping):
    """Takes a second batch from an iterator that ends at one batch of the second epoch."""

    def __init__(self, last: int) -> None:
        super().__init__(False)
        self.others = iter(range(last))

    def training_step(self, batch, index):
        next(self.others)
        return super().training_step(batch, index)


@pytest.mark.parametrize("batches, completed", [(4, 1), (5, 2)])
def test_a_stop_iteration_of_a_step_does_not_join_two_rounds(batches, completed):
    # Lightning takes it for the end of the data: without the check, the next epoch is merged in its place.
    message = f"site 'a': epoch 2 ended after {completed} of 3 batches.*StopIteration was raised in training"
    with pytest.raises(QuorumError, match=message):
        federate(lambda: Paired(batches), torch.ones(3, 2))


def test_a_loader_that_yields_one_pass_only_is_named():
    def fit(exchange):
        trainer = pl.Trainer(
            max_epochs=2, callbacks=[FederatedCallback("a", exchange)], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Skipping(False), (row for row in torch.ones(3, 1, 2)))

    with pytest.raises(
        QuorumError, match=r"epoch 2 ended after 0 of .* none in a second pass \(a generator\)"
    ):
        run_federation({"a": fit}, weights_of(Skipping(False)), rule="fedavg", rounds=2)


def test_a_trainer_that_stops_within_an_epoch_is_no_such_epoch():
    with pytest.raises(QuorumError, match="its Trainer stopped in epoch 1 of 2"):
        federate(lambda: Skipping(False), torch.ones(6, 2), max_steps=3)


def federate(make, rows, **settings):
    def fit(exchange):
        trainer = pl.Trainer(
            max_epochs=2, callbacks=[FederatedCallback("a", exchange)], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip
        trainer.fit(make(), DataLoader(rows, 1))

    return run_federation({"a": fit}, weights_of(make()), rule="fedavg", rounds=2)
