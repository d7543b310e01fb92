"""The base of all local methods: a frozen record that the federated callback calls while a site trains.

In each round the calls come in this order: `start` with the received model, `evaluate_train` before the first
step, then for every batch `step`, `loss` and (if the optimiser steps) `gradient`, and at the end `finish`,
whose groups and `scalars` leave with the update. `personal` is called once, after the study. State goes in
and comes out of each call as named tensors, so that a checkpoint can hold it; `finish` returns it on the CPU,
where an idle site keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from medfed.local_training._step import Step
from medfed.local_training._train_pass import TrainEvaluator
from medfed.registry import Kind
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# What a method keeps through a round and from one round to the next: named groups of named tensors.
LocalState = Mapping[str, Weights]


class LocalMethod(Kind, frozen=True):
    """A method that changes training inside a site."""

    folder: ClassVar[str] = "local_training"

    # The groups of tensors that `finish` sends with the weights, for a rule that needs them.
    sends: ClassVar[tuple[str, ...]] = ()

    # The names of the numbers that `scalars` returns: undeclared numbers do not leave (federation/egress.py).
    reports: ClassVar[tuple[str, ...]] = ()

    # The rules that are the hub's half of this method, if it has one; a study must name one of them.
    rules: ClassVar[tuple[str, ...]] = ()

    # Whether its arithmetic needs the steps of one optimiser.
    one_optimiser: ClassVar[bool] = False

    # Whether the module holds this hospital's own model after the study, and not the federation's.
    module_is_personal: ClassVar[bool] = False

    # Whether `personal` mixes this hospital's own weights with the federation's of the last round.
    mixes_shared: ClassVar[bool] = False

    @property
    def is_data_free(self) -> bool:
        """Whether it uses weights and gradients only, and no case: privacy of its inputs is preserved."""
        return False

    def keep_local(self) -> tuple[str, ...]:
        """Return the layers that this method keeps in the hospital, as `train.keep_local` names them."""
        return ()

    def lacking(self, module: nn.Module) -> str:
        """Return what a module lacks for this method, and what to do, as the end of a sentence; else ''."""
        return ""

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        """Return the state at the start of a round; the module holds the received weights already."""
        return state

    def evaluate_train(self, evaluator: TrainEvaluator, state: LocalState) -> LocalState:
        """Return the state after evaluating the received model on training cases, before the first step."""
        return state

    def step(self, step: Step, state: LocalState) -> LocalState:
        """Return the state after what this method does with a batch before the module is trained on it."""
        return state

    def loss(self, module: nn.Module, module_loss: Callable[[], Tensor], state: LocalState) -> Tensor:
        """Return the loss of one batch; `module_loss()` is the module's own."""
        return module_loss()

    def gradient(self, module: nn.Module, state: LocalState) -> None:
        """Change the gradients of one step in place, after they are unscaled and before they are clipped."""

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        """Return the state and the groups to send, after `steps` steps at a mean learning rate of `rate`."""
        return state, {}

    def scalars(self, state: LocalState) -> dict[str, float]:
        """Return numbers over all of the site's cases that leave with the update, after `finish`."""
        return {}

    def personal(self, module: nn.Module, state: LocalState) -> Weights | None:
        """Return this hospital's own model after the study, or None if the module holds it."""
        return None
