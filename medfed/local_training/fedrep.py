"""FedRep: in each round a hospital first fits its own head to the shared body, then the body to its head.

Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated
Learning, ICML 2021, arXiv:2102.07089, algorithm 1: tau steps on the head, then steps on the representation,
which alone is sent.
Departures: the phases are shares of a round's steps and not epochs, so that E = 1 alternates, too; batch
norm's running statistics in the body follow the data in both phases; the optimiser's moments of the
frozen part stay unchanged.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._step import Step
from medfed.wire.weights import local_names

PHASE = "phase"


class FedRep(LocalMethod, tag="fedrep", frozen=True):
    """Keeps the last layer in the hospital and trains it and the body in turn.

    `head: head` is the network's last layer; any other value names a submodule. `first` is the share of a
    round's steps that train the head; the remaining steps train the body.
    """

    head: str = "head"
    first: Annotated[float, Meta(gt=0, lt=1)] = 0.5

    is_data_free = True

    def keep_local(self) -> tuple[str, ...]:
        return (self.head,)

    def step(self, step: Step, state: LocalState) -> LocalState:
        return {PHASE: {"head": torch.tensor(step.progress < self.first)}}

    def gradient(self, module: nn.Module, state: LocalState) -> None:
        head = local_names(module, (self.head,))
        trains_head = bool(state[PHASE]["head"])
        for name, parameter in module.named_parameters():
            if (name in head) != trains_head:
                # None and not zero: with zero an optimiser would still apply weight decay and momentum.
                parameter.grad = None
