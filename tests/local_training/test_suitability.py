"""A local method works in a Trainer, or is refused before the first step with the reason."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedavgm import FedAvgM
from medfed.aggregation.feddyn import FedDyn as FedDynRule
from medfed.aggregation.qfedavg import QFedAvg
from medfed.aggregation.scaffold import Scaffold as ScaffoldRule
from medfed.data.samplers import LastRoundsSampler
from medfed.errors import QuorumError
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import CallbackOptions
from medfed.local_training._lightning import drawable
from medfed.local_training._suitability import check_suits
from medfed.local_training.apfl import APFL
from medfed.local_training.ditto import Ditto
from medfed.local_training.feddyn import FedDyn
from medfed.local_training.fedprox import FedProx
from medfed.local_training.moon import Moon
from medfed.local_training.scaffold import Scaffold
from medfed.wire.weights import weights_of

RATE = 0.1


class Line(pl.LightningModule):
    """Pulls w towards the mean of the rows: the gradient of a batch is w minus its mean."""

    def __init__(self, optimiser=torch.optim.SGD, **settings) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.optimiser, self.settings = optimiser, settings

    def training_step(self, batch, index):
        return (self.w - batch[0]).square().mean() / 2

    def configure_optimizers(self):
        return self.optimiser(self.parameters(), lr=RATE, **self.settings)


class ByHand(Line):
    """Takes its optimiser's steps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimiser = self.optimizers()
        optimiser.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        optimiser.step()


class TwoByHand(ByHand):
    """Two parameters with an optimiser each, whose gradients are both there when the second steps."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        one, two = self.optimizers()
        one.zero_grad()
        two.zero_grad()
        loss = (self.w - batch[0]).square().mean() / 2 + (self.v + batch[0]).square().mean() / 2
        self.manual_backward(loss)
        one.step()
        two.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([one], lr=RATE) for one in (self.w, self.v)]


class Looked(pl.LightningModule):
    """A table of vectors with sparse gradients."""

    def __init__(self, sparse=True, optimiser=torch.optim.SGD) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 1, sparse=sparse)
        nn.init.zeros_(self.table.weight)
        self.optimiser = optimiser

    def training_step(self, batch, index):
        return (self.table(batch[0].long() % 2) - 1).square().mean()

    def configure_optimizers(self):
        return self.optimiser(self.parameters(), lr=RATE)


def run(module, local, rule=None, rounds=2, **options):
    modules = []

    def fit(exchange):
        trained = module()
        modules.append(trained)
        trainer = pl.Trainer(
            max_epochs=rounds, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[FederatedCallback("a", exchange, local=local, options=CallbackOptions(**options))],
        )  # fmt: skip
        trainer.fit(trained, DataLoader(TensorDataset(torch.arange(4.0)), 2))

    final = medfed.run_federation({"a": fit}, weights_of(module()), rule=rule or FedAvg(), rounds=rounds)
    return dict(final.weights), modules[0]


def refusal(*args, **options) -> str:
    with pytest.raises(QuorumError) as caught:
        run(*args, **options)
    assert isinstance(caught.value.__cause__, medfed.StudyError)
    return str(caught.value.__cause__)


def fedprox_by_hand(mu: float, sign: float = 1.0) -> float:
    """Return w after two rounds of two steps, on the batch means 0.5 and 2.5."""
    w = 0.0
    for _ in range(2):
        anchor = w
        for mean in (0.5, 2.5):
            w -= RATE * (w - sign * mean + mu * (w - anchor))
    return w


def test_manual_optimisation_with_fedprox_is_fedprox():
    weights, _ = run(ByHand, FedProx(mu=0.5))
    assert float(weights["w"]) == pytest.approx(fedprox_by_hand(0.5), rel=1e-6)
    assert fedprox_by_hand(0.5) != pytest.approx(fedprox_by_hand(0.0), rel=1e-3)


def test_with_two_optimisers_each_step_is_pulled_once():
    weights, _ = run(TwoByHand, FedProx(mu=0.5))
    assert float(weights["w"]) == pytest.approx(fedprox_by_hand(0.5), rel=1e-6)
    assert float(weights["v"]) == pytest.approx(fedprox_by_hand(0.5, -1.0), rel=1e-6)


@pytest.mark.parametrize("local", [Ditto(), APFL(), Moon(head="w"), Scaffold(option="I")])
def test_manual_optimisation_is_refused_where_a_method_runs_the_step(local):
    rule = ScaffoldRule() if isinstance(local, Scaffold) else None
    assert "takes its optimiser's steps itself" in refusal(ByHand, local, rule)


def test_moon_without_its_last_layer_is_refused_before_the_first_round():
    message = refusal(Line, Moon())
    assert "needs the last layer, and Line has no submodule 'head'; set train.local.head" in message
    assert message.endswith("nothing was trained")


def test_manual_optimisation_is_refused_where_the_rule_needs_a_loss():
    message = refusal(ByHand, None, QFedAvg(), required_scalars=["train/loss_before"])
    assert "needs the training loss of the received model" in message


def test_scaffold_needs_one_optimiser():
    assert "needs one optimiser, this module has 2" in refusal(TwoByHand, Scaffold(), ScaffoldRule())


@pytest.mark.parametrize("local", [FedProx(mu=0.5), Ditto(), APFL()])
def test_sparse_gradients_train_as_dense_ones(local):
    sparse, _ = run(Looked, local)
    dense, _ = run(lambda: Looked(sparse=False), local)
    assert torch.equal(sparse["table.weight"], dense["table.weight"])
    assert float(sparse["table.weight"].abs().sum()) > 0


def test_sparse_adam_is_refused_with_a_dense_term():
    def module():
        return Looked(optimiser=torch.optim.SparseAdam)

    assert "SparseAdam takes sparse ones only" in refusal(module, FedProx())


def test_lbfgs_is_refused_where_gradients_are_changed():
    assert "LBFGS compares them with the loss" in refusal(lambda: Line(torch.optim.LBFGS), FedProx())


def test_a_fused_optimiser_under_a_gradient_scaler_is_refused():
    fused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE, fused=True)
    scaling = SimpleNamespace(optimizers=[fused], precision_plugin=SimpleNamespace(scaler=object()))
    with pytest.raises(
        medfed.StudyError, match=r"local method 'fedprox' .* a fused optimiser under 16-mixed"
    ):
        check_suits(FedProx(), scaling, Line(), "a")
    scaling.precision_plugin = SimpleNamespace(scaler=None)
    check_suits(FedProx(), scaling, Line(), "a")


def test_a_skipped_batch_is_no_obstacle_to_a_method_that_leaves_the_loss():
    class Skips(Line):
        def training_step(self, batch, index):
            return super().training_step(batch, index) if index else None

    weights, _ = run(Skips, FedProx(mu=0.5), rounds=1)
    assert float(weights["w"]) == pytest.approx(RATE * 2.5)


@pytest.mark.parametrize("local", [Ditto(pull=0.0), Moon(head="head")])
def test_a_training_step_without_an_index_is_called_without_one(local):
    class Short(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 1)

        def training_step(self, batch):
            return self.head(batch[0][:, None]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    assert run(Short, local)[0]


# -- halves


@pytest.mark.parametrize(
    "local, rule, message",
    [
        (Scaffold(), FedAvg(), "'scaffold' is half of a method whose hub runs the rule 'scaffold', and this"),
        (FedDyn(), FedAvg(), "this hub runs 'fedavg'; give the hub rule='feddyn'"),
        (
            None,
            FedDynRule(),
            r"rule 'feddyn' merges sites that train by the local method 'feddyn', this site",
        ),
        (FedProx(), ScaffoldRule(), "this site trains by 'fedprox'; give FederatedCallback"),
        (None, QFedAvg(), r"'qfedavg' needs train/loss_before of each site; give .*required_scalars="),
    ],
)
def test_a_half_without_the_other_is_refused_before_training(local, rule, message):
    result = refusal(Line, local, rule)
    assert re.search(message, result)
    assert "nothing was trained" in result


@pytest.mark.parametrize("local, rule", [(Scaffold(), ScaffoldRule()), (FedDyn(), FedDynRule())])
def test_both_halves_train(local, rule):
    assert float(run(Line, local, rule)[0]["w"]) > 0


# -- by name


def test_rule_and_local_method_by_name_are_their_defaults():
    by_name, _ = run(Line, "fedprox", "fedavgm")
    by_record, _ = run(Line, FedProx(), FedAvgM())
    assert torch.equal(by_name["w"], by_record["w"])


@pytest.mark.parametrize(
    "rule, message",
    [
        ("fedagv", "aggregation: no 'fedagv'; did you mean 'fedavg'\\? there are boosted_trees, bulyan, "),
        (
            FedAvg,
            "expected a kind of 'aggregation' .* found the class FedAvg",
        ),
        (FedProx(), "expected a kind of 'aggregation' .* found a FedProx"),
    ],
)
def test_a_rule_that_is_none_says_what_to_pass(rule, message):
    with pytest.raises(medfed.RegistryError, match=message):
        medfed.run_federation({"a": lambda exchange: None}, {"w": torch.zeros(1)}, rule=rule, rounds=1)


# -- which cases are evaluated before training


@pytest.mark.parametrize(
    "sampler, items",
    [
        (None, None),
        (SubsetRandomSampler([5, 1]), [1, 5]),
        (WeightedRandomSampler([0.0, 2.0, 0.0, 1.0], 9), [1, 3]),
        (LastRoundsSampler([0, 3], 6, "s"), [0, 3]),
    ],
)
def test_the_items_that_a_sampler_can_draw(sampler, items):
    assert drawable(DataLoader(TensorDataset(torch.arange(6.0)), 2, sampler=sampler)) == items


def test_the_loss_before_training_is_over_the_sampled_cases_only():
    reports = []

    def fit(exchange):
        options = CallbackOptions(required_scalars=["train/loss_before"])
        trainer = pl.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[FederatedCallback("a", exchange, options=options)],
        )  # fmt: skip
        held_out_too = TensorDataset(torch.tensor([1.0, 1.0, 100.0, 100.0]))
        trainer.fit(Line(), DataLoader(held_out_too, 2, sampler=SubsetRandomSampler([0, 1])))

    medfed.run_federation({"a": fit}, weights_of(Line()), rule=QFedAvg(), rounds=1, on_round=reports.append)
    # w is 0, both drawn rows are 1: half of a squared distance of 1.
    assert reports[0].results[0].scalars["train/loss_before"] == pytest.approx(0.5)


class Unwrapped(ByHand):
    """Steps torch's own optimiser, which Lightning does not see."""

    def training_step(self, batch, index):
        optimiser = self.optimizers(use_pl_optimizer=False)
        optimiser.zero_grad()
        self.manual_backward(Line.training_step(self, batch, index))
        optimiser.step()


@pytest.mark.parametrize("local, rule", [(FedProx(mu=1.0), None), (Scaffold(), ScaffoldRule())])
def test_steps_that_lightning_does_not_see_are_refused_where_a_method_changes_gradients(local, rule):
    # Before, FedProx trained as if it were not there.
    message = refusal(Unwrapped, local, rule)
    assert "'w' changed without a step that Lightning knows. Return optimisers from" in message
    assert float(run(Unwrapped, None)[0]["w"]) == pytest.approx(float(run(ByHand, None)[0]["w"]))
