"""IFCA's site: trains the one of the hub's models that fits its cases best.

Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning, NeurIPS 2020,
arXiv:2006.04088, algorithm 1, lines 6 to 9 with model averaging. The hub's half is aggregation/ifca.py, which
lists the departures; a study names both. A model's loss is the mean over the site's training cases, computed
anew in each round, augmented as in training but with the same random draws for all models.
"""

from __future__ import annotations

import torch
from torch import nn

from medfed.aggregation.ifca import CHOICE, cluster_name
from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._train_pass import TrainEvaluator
from medfed.local_training._weights import to_cpu, to_device
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights, load

CHOSEN = "chosen"


class IFCA(LocalMethod, tag="ifca", frozen=True):
    """Trains the hub's model with the lowest loss on the training cases, and sends its number."""

    rules = ("ifca",)
    module_is_personal = True
    reports = (CHOICE,)

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        models = {name: group for name, group in received.groups.items() if name.startswith("cluster-")}
        if CHOSEN in state and models:
            load(module, models[cluster_name(_chosen(state))])
        return {**models, **({CHOSEN: state[CHOSEN]} if CHOSEN in state else {})}

    def evaluate_train(self, evaluator: TrainEvaluator, state: LocalState) -> LocalState:
        names = sorted(name for name in state if name.startswith("cluster-"))
        losses = [evaluator.loss(to_device(state[name], evaluator.module)) for name in names]
        # A loss of NaN is never the lowest; of equal losses the first wins.
        best = min(range(len(names)), key=lambda k: losses[k] if losses[k] == losses[k] else float("inf"))
        load(evaluator.module, state[names[best]])
        return {**state, CHOSEN: {"cluster": torch.tensor(best)}}

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        return {CHOSEN: to_cpu(state[CHOSEN])}, {}

    def scalars(self, state: LocalState) -> dict[str, float]:
        return {CHOICE: float(_chosen(state))}


def _chosen(state: LocalState) -> int:
    return int(state[CHOSEN]["cluster"])
