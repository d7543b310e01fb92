"""The contracts of networks, optimisers, schedules and tasks name what naive ones break."""

from __future__ import annotations

import warnings
from typing import ClassVar

import pytest
import torch
from contract import broken
from torch import nn

from medfed.models.networks import Network
from medfed.models.optimisers import Optimiser
from medfed.models.schedules import Schedule
from medfed.models.tasks.tabular import Tabular
from medfed.testing import check_network, check_optimiser, check_schedule, check_task

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="pytorch_lightning")


class Linear(Network, frozen=True, tag="linear"):
    """A linear layer for tables."""

    serves: ClassVar = ("table", "survival")
    head: ClassVar[str] = "1"

    def build(self, inputs, outputs, size=None):
        return nn.Sequential(nn.Linear(inputs, inputs), nn.Linear(inputs, outputs))


class Unused(Linear, frozen=True, tag="unused"):
    """Has a layer that no case passes."""

    def build(self, inputs, outputs, size=None):
        module = super().build(inputs, outputs)
        module.spare = nn.Linear(2, 2)
        module.forward = lambda x: module[1](module[0](x))
        return module


class Shared(Linear, frozen=True, tag="shared"):
    """Uses one layer twice, and names a head that is not there."""

    head: ClassVar[str] = "output"

    def build(self, inputs, outputs, size=None):
        layer = nn.Linear(inputs, inputs)
        return nn.Sequential(layer, layer, nn.Linear(inputs, outputs))


class Plain(Optimiser, frozen=True, tag="plain"):
    """Plain gradient descent."""

    lr: float = 0.1

    def build(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr)


class Fixed(Plain, frozen=True, tag="fixed"):
    """Gradient descent at a rate of its own."""

    def build(self, parameters):
        return torch.optim.SGD(parameters, lr=1e-4)


class Forgetful(Plain, frozen=True, tag="forgetful"):
    """Momentum that a checkpoint does not hold."""

    def build(self, parameters):
        optimiser = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)
        state_dict = optimiser.state_dict
        optimiser.state_dict = lambda: {**state_dict(), "state": {}}
        return optimiser


class Halving(Schedule, frozen=True, tag="halving"):
    """Half the rate after half the epochs."""

    def factor(self, epoch, epochs):
        return 1.0 if epoch < epochs / 2 else 0.5


class Doubling(Schedule, frozen=True, tag="doubling"):
    """Twice the rate of the optimiser after each epoch, and none after the last."""

    def factor(self, epoch, epochs):
        return 2.0**epoch if epoch < epochs else float("nan")


CALLS: list[int] = []


class Counting(Schedule, frozen=True, tag="counting"):
    """Falls with each call, whatever the epoch."""

    def factor(self, epoch, epochs):
        CALLS.append(1)
        return 1 / len(CALLS)


class Logging(Tabular, frozen=True, tag="logging"):
    """Logs a score that it does not declare."""

    @property
    def scores(self):
        return ()


CLASSES = ("healthy", "ill")
RIGHT = [
    (check_network, Linear()),
    (check_optimiser, Plain()),
    (check_schedule, Halving()),
    (check_task, Tabular(classes=CLASSES)),
]
WRONG = [
    (check_network, Unused(), {"every_parameter_learns"}),
    (check_network, Shared(), {"no_tensor_has_two_names", "the_head_is_there_and_gives_the_outputs"}),
    (check_optimiser, Fixed(), {"it_descends_at_its_learning_rate"}),
    (check_optimiser, Forgetful(), {"its_state_is_read_back_without_pickle"}),
    (
        check_schedule,
        Doubling(),
        {"each_epoch_trains_at_the_rate_times_its_factor", "stepping_on_after_the_run_is_harmless"},
    ),
    (check_schedule, Counting(), {"it_goes_on_from_a_checkpoint_that_torch_reads_without_pickle"}),
    (
        check_task,
        Logging(classes=CLASSES),
        {"it_trains_and_its_checkpoint_holds_the_network_and_plain_numbers"},
    ),
]


def name(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("contract", "kind"), RIGHT, ids=name)
def test_a_right_one_passes(contract, kind) -> None:
    contract(kind)


@pytest.mark.parametrize(("contract", "kind", "checks"), WRONG, ids=name)
def test_a_wrong_one_is_named(contract, kind, checks) -> None:
    assert broken(contract, kind) >= checks
