"""What every local method is: a frozen record whose verbs the federated callback calls while a site trains.

In a round they come in this order: `start` with the received model, `survey` before the first step, for every
batch `step`, `loss` and (where the optimiser steps) `gradient`, then `finish`, whose groups and `scalars`
leave with the update. `personal` is asked for once, after the study. State goes in and comes out of each, as
named tensors, so that a checkpoint holds it; at `finish` it goes to the CPU, where an idle site keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from medfed.registry import Kind
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from medfed.local_training._train_pass import Look

# What a method carries through a round and from one to the next: named groups of named tensors.
LocalState = Mapping[str, Weights]


@dataclass(frozen=True)
class Step:
    """One batch that is about to be trained on, for a method that also trains something beside the module.

    `own_loss()` is the module's training loss of the batch, in the Trainer's precision and logged nowhere.
    `part` is the batch's share of an accumulated gradient, `ends` whether the optimiser steps after it,
    `done` the share of the round's steps that lie behind. `average` takes a tensor's mean over the hospital's
    processes, `scale` is by what a loss must be multiplied lest half precision loses its gradient.
    """

    module: nn.Module
    batch: Any
    own_loss: Callable[[], Tensor]
    optimiser: Optimizer
    ends: bool = True
    part: float = 1.0
    done: float = 0.0
    clip: float | None = None
    scale: float = 1.0
    average: Callable[[Tensor], Tensor] = lambda tensor: tensor


class Local(Kind, frozen=True):
    """What changes training inside a site."""

    folder: ClassVar[str] = "local_training"

    # The groups of tensors that `finish` sends beside the weights, for a rule that needs them.
    sends: ClassVar[tuple[str, ...]] = ()

    # The names of the numbers that `scalars` returns: what is not declared does
    # not leave (federation/egress.py).
    reports: ClassVar[tuple[str, ...]] = ()

    # The rules that do the hub's part of this method, where it has one; a study must name one of them.
    rules: ClassVar[tuple[str, ...]] = ()

    # Whether the model that the module holds at the end is this hospital's own and not the federation's.
    makes_own: ClassVar[bool] = False

    @property
    def needs_no_cases(self) -> bool:
        """Whether its verbs use weights and gradients only and no case: what is private
        before stays so after.
        """
        return False

    def kept(self) -> tuple[str, ...]:
        """Return what this method keeps in the hospital, in the words of `train.keep_local`."""
        return ()

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        """Return the state for a round that begins; the module holds the received weights already."""
        return state

    def survey(self, look: Look, state: LocalState) -> LocalState:
        """Return the state after a look at the training cases with the received model, before the first step."""
        return state

    def step(self, step: Step, state: LocalState) -> LocalState:
        """Return the state after what this method does with a batch before the module is trained on it."""
        return state

    def loss(self, module: nn.Module, own: Callable[[], Tensor], state: LocalState) -> Tensor:
        """Return the loss of one batch; `own()` is the module's."""
        return own()

    def gradient(self, module: nn.Module, state: LocalState) -> None:
        """Change the gradients of one step in place, after they are unscaled and before they are clipped."""

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        """Return the state and the groups of tensors to send, after `steps` steps at a mean
        learning rate of `rate`.
        """
        return state, {}

    def scalars(self, state: LocalState) -> dict[str, float]:
        """Return numbers over all of the site's cases that leave with the update, after `finish`."""
        return {}

    def personal(self, module: nn.Module, state: LocalState) -> Weights | None:
        """Return this hospital's own model after the study, or None where it is the one
        that the module holds.
        """
        return None
