"""A score leaves only if it was measured on the merged model of its round."""

from __future__ import annotations

from copy import deepcopy

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import CallbackOptions
from medfed.federation.merged_scores import holds
from medfed.wire.weights import weights_of

ROWS = TensorDataset(torch.arange(8.0).reshape(8, 1))
HELD_OUT = TensorDataset(torch.tensor([[1.0], [3.0]]))


class Scale(pl.LightningModule):
    """Learns w in (w x)^2, so that its score of a model is the mean of (w x)^2 over the held-out rows."""

    scores = ("val/score", "train/own")

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, index):
        self.log("train/own", 77.0)
        return (self.w * batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("val/score", (self.w * batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.001)


def score(weights) -> float:
    """Return the score of a model by hand: the mean of 1 and 9 times its squared weight."""
    return float(weights["w"]) ** 2 * 5


def federated(rounds=3, epochs=1, *, callbacks=(), module=Scale, **settings):
    """Return the sent scores by the round of their model, and each round's model."""
    models, reports = {}, []

    def fit(exchange):
        trainer = pl.Trainer(
            max_epochs=rounds * epochs, callbacks=[*callbacks, FederatedCallback("a", exchange, epochs)],
            logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False, **settings,
        )  # fmt: skip
        before = (trainer.check_val_every_n_epoch, settings.get("val_check_interval", 1.0))
        trainer.fit(module(), DataLoader(ROWS, 2), DataLoader(HELD_OUT, 2))
        assert (trainer.check_val_every_n_epoch, trainer.val_check_interval) == before

    simulated(
        {"a": fit}, weights_of(module()), rule=FedAvg(), rounds=rounds, on_round=reports.append,
        on_model=lambda model: models.setdefault(model.round, dict(model.weights)),
    )  # fmt: skip
    sent = {report.round - 1: report.results[0].scalars for report in reports}
    return sent, models


def assert_scored(sent, models, rounds):
    """Check that the scores of these rounds' models were sent, each its own, and no others."""
    result = {number: scalars["val/score"] for number, scalars in sent.items() if "val/score" in scalars}
    assert result == pytest.approx({number: score(models[number]) for number in rounds})
    assert len({float(model["w"]) for model in models.values()}) == len(models)


@pytest.mark.parametrize(
    "epochs, settings, scored",
    [
        (1, {}, [1, 2, 3]),
        (2, {}, [1, 2, 3]),
        (1, {"check_val_every_n_epoch": 2}, [2, 3]),
        (2, {"check_val_every_n_epoch": 2}, [1, 2, 3]),
        (1, {"check_val_every_n_epoch": 5}, [3]),
        (1, {"val_check_interval": 5, "check_val_every_n_epoch": None, "min_epochs": 3}, [3]),
        # Twice in an epoch of 4 batches: the first is of local weights, the second of merged ones.
        (1, {"val_check_interval": 0.5}, [1, 2, 3]),
        # In the middle of epochs only.
        (1, {"val_check_interval": 5, "check_val_every_n_epoch": None}, [3]),
        # After batches 3, 6, 9, 12 of 3 epochs of 4: only the last falls on a merge.
        (1, {"val_check_interval": 3, "check_val_every_n_epoch": None}, [3]),
        (1, {"limit_val_batches": 0}, []),
        # Lightning's sanity check runs before a model is received, and is no score.
        (1, {"num_sanity_val_steps": -1, "check_val_every_n_epoch": 5}, [3]),
    ],
)
def test_each_score_is_that_of_the_model_it_is_sent_of(epochs, settings, scored):
    assert_scored(*federated(epochs=epochs, **settings), scored)


def test_a_score_is_not_sent_again_of_the_next_model():
    # Of four rounds the second and fourth are validated: the third model has no score, and not the second's.
    assert_scored(*federated(rounds=4, check_val_every_n_epoch=2), [2, 4])


def test_a_missing_score_is_said(caplog):
    federated(check_val_every_n_epoch=2)
    assert "no validation ran between that merge and the next step" in caplog.text
    caplog.clear()
    federated()
    federated(limit_val_batches=0)
    assert "has no scores" not in caplog.text


def test_a_moving_averages_score_is_not_the_merged_models(caplog):
    sent, _ = federated(callbacks=[EMAWeightAveraging(decay=0.5)])
    assert not any("val/score" in scalars for scalars in sent.values())
    assert "validation ran on other weights" in caplog.text


def test_what_training_logs_is_no_score(caplog):
    sent, _ = federated()
    assert "train/own of the module's `scores` are logged by training" in caplog.text
    assert not any("train/own" in scalars for scalars in sent.values())


class Layered(Scale):
    """Learns (w x)^2 with w in a layer, as networks have their weights."""

    swaps_in = ""

    def __init__(self) -> None:
        super().__init__()
        del self.w
        self.net = nn.Linear(1, 1, bias=False)
        self.net.weight.data.fill_(1.0)

    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()

    def swap(self, where: str) -> None:
        if self.swaps_in == where:
            self.net.weight.data.mul_(0.5)

    def restore(self, where: str) -> None:
        if self.swaps_in == where:
            self.net.weight.data.mul_(2.0)

    def on_validation_batch_start(self, batch, index, loader=0):
        self.swap("hook")

    def on_validation_batch_end(self, outputs, batch, index, loader=0):
        self.restore("hook")

    def validation_step(self, batch, index):
        self.swap("step")
        self.log("val/score", self.predict(batch[0]).square().mean())
        self.restore("step")

    def predict(self, rows):
        half = nn.Parameter(self.net.weight.detach() / 2)
        if self.swaps_in == "functional_call":
            return torch.func.functional_call(self.net, {"weight": half}, (rows,))
        if self.swaps_in == "unregistered copy":
            copied = deepcopy(self.net)
            copied.weight = half
            return copied(rows)
        own = self.net.weight
        if self.swaps_in == "attribute":
            self.net.weight = half
        try:
            return self.net(rows)
        finally:
            self.net.weight = own


def layered_scores(where: str) -> list:
    """Return what is sent as the score of each round's model, over its weight: 5 is the merged model's."""

    def fit(exchange):
        module = Layered()
        module.swaps_in = where
        trainer = pl.Trainer(
            max_epochs=2, callbacks=[FederatedCallback("a", exchange)], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(ROWS, 2), DataLoader(HELD_OUT, 2))
        assert not module.net._forward_pre_hooks

    models, reports = {}, []
    simulated(
        {"a": fit}, weights_of(Layered()), rule=FedAvg(), rounds=2, on_round=reports.append,
        on_model=lambda model: models.setdefault(model.round, float(model.weights["net.weight"])),
    )  # fmt: skip
    sent = [report.results[0].scalars.get("val/score") for report in reports[1:]]
    return [None if one is None else one / models[1 + at] ** 2 for at, one in enumerate(sent)]


def test_a_module_that_validates_other_weights_by_itself_has_no_scores(caplog):
    assert layered_scores("") == [pytest.approx(5), pytest.approx(5)]
    assert layered_scores("hook") == [None, None]
    assert layered_scores("step") == [None, None]
    assert layered_scores("functional_call") == [None, None]
    assert layered_scores("attribute") == [None, None]
    assert layered_scores("unregistered copy") == [None, None]
    assert "validation ran on other weights" in caplog.text


class Listed(Scale):
    """Learns (w x)^2 with w in a list, which no layer calls."""

    def __init__(self) -> None:
        super().__init__()
        self.listed, self.net = nn.ParameterList([self.w]), nn.Linear(1, 1)


def test_tensors_that_are_used_without_a_layer_have_their_scores():
    assert_scored(*federated(module=Listed), [1, 2, 3])


def validated_elsewhere(rows: DataLoader) -> tuple[list, float]:
    """Return what is sent where a site validates on other rows too, and the final model's score."""

    def fit(exchange):
        callback = FederatedCallback("a", exchange, options=CallbackOptions(close_at_end=False))
        trainer = pl.Trainer(
            max_epochs=1, callbacks=[callback], logger=False, accelerator="cpu", enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = Scale()
        trainer.validate(module, rows, verbose=False)
        trainer.fit(module, DataLoader(ROWS, 2), DataLoader(HELD_OUT, 2))
        trainer.validate(module, rows, verbose=False)
        callback.close()

    reports = []
    final = simulated({"a": fit}, weights_of(Scale()), rule=FedAvg(), rounds=1, on_round=reports.append)
    return [report.results[0].scalars.get("val/score") for report in reports], score(final.weights)


def test_what_is_validated_outside_of_fit_is_no_score():
    sent, own = validated_elsewhere(DataLoader(TensorDataset(torch.tensor([[100.0]]))))
    assert sent == [None, pytest.approx(own)]


@pytest.mark.parametrize("numbers", [[0.0, 1.0], [0.0, 1.0, 2.0]])  # of eight bytes, and of twelve
def test_tensors_hold_equal_values_whatever_their_bytes(numbers):
    own = torch.tensor(numbers)
    assert holds({"a": own}, {"a": own.clone()})
    assert holds({"a": -own * -1}, {"a": own})
    assert holds({"a": torch.where(own == 0, -0.0, own)}, {"a": own})
    assert not holds({"a": own + 1}, {"a": own})
    assert not holds({"a": own[:1]}, {"a": own})
    assert not holds({}, {"a": own})


def test_a_section_of_a_tensor_is_compared_by_its_values():
    whole = torch.tensor([9.0, 1.0, 2.0])
    assert holds({"a": whole[1:]}, {"a": torch.tensor([1.0, 2.0])})
    assert not holds({"a": whole[1:]}, {"a": torch.tensor([1.0, 3.0])})
