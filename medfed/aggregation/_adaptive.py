"""The server's adaptive step that FedAdagrad, FedAdam and FedYogi share; only their second moments differ.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021,
arXiv:2003.00295, Algorithm 2:

    m <- beta1 m + (1 - beta1) delta        v <- second(v, delta^2)        w <- w + eta m / (sqrt(v) + tau)

Departures. The mean delta is weighted by examples (the paper's pseudocode takes equal clients; its
experiments weigh). Batch norm's running statistics are averaged, not stepped: their variance could become
negative. What the state holds is the root of v, in float32: a delta of 1e30 squared leaves float32, one of
1e-25 vanishes in it, and the root does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from medfed.aggregation._reduce import part_of, sums, write, write_as
from medfed.aggregation._rule import (
    Fraction,
    NotNegative,
    Positive,
    Rule,
    State,
    by_site,
    carried,
    is_running_statistic,
    shares,
    state_dtype,
    zeros_for_state,
)
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# (v, delta) -> v, element by element, float64; both may be written over.
SecondMoment = Callable[[Tensor, Tensor], Tensor]


class Adaptive(Rule, frozen=True):
    """The hyperparameters that the three adaptive rules share, with the paper's names for them.

    `learning_rate` is eta, in weights a round: a first step moves each weight by about that much, whatever
    the sites' own learning rate. `start` is v before the first round; None is the paper's tau squared,
    FLamby's is 0.
    """

    learning_rate: Positive = 0.01
    beta1: Fraction = 0.9
    tau: Positive = 1e-3
    start: NotNegative | None = None

    def init(self, weights: Weights) -> State:
        root = self.tau if self.start is None else self.start**0.5
        momentum = zeros_for_state(weights)
        return {
            "momentum": momentum,
            "root_second_moment": {name: torch.full_like(zeros, root) for name, zeros in momentum.items()},
        }


def adaptive_merge(
    rule: Adaptive, updates: Iterable[Update], state: State, weights: Weights, second: SecondMoment
) -> tuple[dict[str, Tensor], State]:
    """Return the new weights and moments after one adaptive step along the sites' mean delta."""
    sites = by_site(updates)
    momentum_before = carried(state, "momentum", rule)
    root_before = carried(state, "root_second_moment", rule)
    merged: dict[str, Tensor] = {}
    momentum: dict[str, Tensor] = {}
    root: dict[str, Tensor] = {}
    for block in sums(sites, shares(sites), weights):
        if is_running_statistic(block.name):
            write(merged, block, block.model(), sites)
            continue
        dtype = state_dtype(block.tensor.dtype)
        delta = block.delta()
        first = part_of(momentum_before, block).lerp_(delta, 1 - rule.beta1)
        scale = second(part_of(root_before, block).square_(), delta)
        # numpy's root takes half of torch's time.
        np.sqrt(scale.numpy(), out=scale.numpy())
        write_as(momentum, block, first, sites, dtype)
        write_as(root, block, scale, sites, dtype)
        write(
            merged,
            block,
            block.weights().addcdiv_(first, scale.add_(rule.tau), value=rule.learning_rate),
            sites,
        )
    return merged, {"momentum": momentum, "root_second_moment": root}
