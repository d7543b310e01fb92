"""IFCA's site: of the hub's models it trains the one that fits its cases best.

Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning, NeurIPS 2020,
arXiv:2006.04088, algorithm 1, lines 6 to 9 with model averaging. The hub's part is aggregation/ifca.py, which
says where it departs; a study names both. A model's loss is the mean over the site's training cases, each
round anew, augmented as in training but with the same draws for all models.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from medfed.aggregation.ifca import CHOICE, cluster_name
from medfed.local_training._local import Local, LocalState
from medfed.local_training._personal_model import at_rest, near
from medfed.local_training._train_pass import Look
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights, load

CHOSEN = "chosen"


class IFCA(Local, tag="ifca", frozen=True):
    """Trains the hub's model of lowest loss on the training cases; which one it was is sent as a number."""

    rules: ClassVar[tuple[str, ...]] = ("ifca",)
    makes_own: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = (CHOICE,)

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        models = {name: group for name, group in received.groups.items() if name.startswith("cluster-")}
        if CHOSEN in state and models:
            load(module, models[cluster_name(_chosen(state))])
        return {**models, **({CHOSEN: state[CHOSEN]} if CHOSEN in state else {})}

    def survey(self, look: Look, state: LocalState) -> LocalState:
        names = sorted(name for name in state if name.startswith("cluster-"))
        losses = [look.loss(near(state[name], look.module)) for name in names]
        # A loss that is not a number is never the lowest; of equal ones the first is taken.
        best = min(range(len(names)), key=lambda k: losses[k] if losses[k] == losses[k] else float("inf"))
        load(look.module, state[names[best]])
        return {**state, CHOSEN: {"cluster": torch.tensor(best)}}

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        return {CHOSEN: at_rest(state[CHOSEN])}, {}

    def scalars(self, state: LocalState) -> dict[str, float]:
        return {CHOICE: float(_chosen(state))}


def _chosen(state: LocalState) -> int:
    return int(state[CHOSEN]["cluster"])
