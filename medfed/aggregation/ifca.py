"""IFCA's hub: several models, each the mean of the sites that chose it.

Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning, NeurIPS 2020,
arXiv:2006.04088, algorithm 1 with model averaging. A site receives all models, trains the one with the lowest
loss on its training cases (local_training/ifca.py), and sends the number of its choice as `train/cluster`.

The paper starts from independent random models. A rule sees only the study's first model, so the
others are this model plus noise of `spread` times each tensor's standard deviation, drawn from `seed`
and the model's number.
Departures: means are weighted by examples; a model that no site chose stays as it is; the global weights, for
sites without a cluster, are the mean over all sites.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import Merged, NotNegative, Rule, State, Updates
from medfed.aggregation._state import state_group
from medfed.aggregation._updates import describe, required_scalar, shares, validated_updates
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights, is_running_statistic

CHOICE = "train/cluster"
# The hub sends all models each round, and more than this would not be clusters of hospitals.
MAX_CLUSTERS = 16


def cluster_name(number: int) -> str:
    """Return the name of a cluster's group of tensors; the names sort like the numbers."""
    return f"cluster-{number:02}"


class IFCA(Rule, frozen=True, tag="ifca"):
    """Several models, each the mean of the sites whose cases it fits best.

    `clusters` is their number. They start from the study's first model plus noise of `spread` standard
    deviations of each tensor, drawn from `seed`.
    """

    clusters: Annotated[int, Meta(ge=2, le=MAX_CLUSTERS)] = 2
    spread: NotNegative = 0.5
    seed: Annotated[int, Meta(ge=0)] = 0

    needs_local = ("ifca",)

    @property
    def broadcast(self) -> tuple[str, ...]:
        return tuple(cluster_name(number) for number in range(self.clusters))

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        return (CHOICE,)

    def init(self, weights: Weights) -> State:
        return {cluster_name(number): self._perturbed(weights, number) for number in range(self.clusters)}

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        chosen = [self._choice(update) for update in sites]
        after: dict[str, Weights] = {}
        for number in range(self.clusters):
            members = [update for update, choice in zip(sites, chosen, strict=True) if choice == number]
            before = state_group(state, cluster_name(number), self)
            after[cluster_name(number)] = (
                _mean(members, weights) if members else {n: t.clone() for n, t in before.items()}
            )
        return _mean(sites, weights), after

    def check(self, update: Update) -> None:
        self._choice(update)

    def _choice(self, update: Update) -> int:
        choice = required_scalar(update, CHOICE, "is the number of the cluster that it chose")
        if choice != int(choice) or not 0 <= choice < self.clusters:
            raise RuleError(
                f"{describe(update)}: scalar '{CHOICE}' is {choice:g}; expected a whole number from 0 to "
                f"{self.clusters - 1}"
            )
        return int(choice)

    def _perturbed(self, weights: Weights, number: int) -> dict[str, Tensor]:
        if number == 0:
            return {name: tensor.clone() for name, tensor in weights.items()}
        generator = torch.Generator().manual_seed(1000003 * self.seed + number)
        moved = {}
        for name in sorted(weights):
            tensor = weights[name]
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            deviation = tensor.double().std(correction=0) if tensor.numel() > 1 else torch.tensor(0.0)
            noisy = tensor.double() + self.spread * deviation * noise
            moved[name] = tensor.clone() if is_running_statistic(name) else noisy.to(tensor.dtype)
        return {name: moved[name] for name in weights}


def _mean(members: list[Update], weights: Weights) -> dict[str, Tensor]:
    return add_weighted_deltas(members, shares(members), weights)
