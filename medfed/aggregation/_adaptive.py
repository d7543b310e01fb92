"""The adaptive server step of FedAdagrad, FedAdam and FedYogi, which differ in the second moment only.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021,
arXiv:2003.00295, Algorithm 2:

    m <- beta1 m + (1 - beta1) delta        v <- second(v, delta^2)        w <- w + eta m / (sqrt(v) + tau)

Departures. The mean delta is weighted by examples (the paper's pseudocode counts clients equally, its
experiments weight them). Batch norm's running statistics are averaged, not stepped, because a step could make
a variance negative. The state holds the root of v, in float32: the square of a delta of 1e30 overflows
float32 and that of 1e-25 vanishes; the root does neither.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medfed.aggregation._reduce import stepped_blocks, write_block
from medfed.aggregation._rule import Fraction, Merged, NotNegative, Positive, Rule, State, Updates
from medfed.aggregation._state import state_block, state_dtype, state_group, zeros_for_state
from medfed.aggregation._updates import shares, validated_updates
from medfed.wire.weights import Weights


class Adaptive(Rule, frozen=True):
    """The hyperparameters of the three adaptive rules, under the paper's names.

    `learning_rate` is eta: a first step moves each weight by about that much, whatever the sites' own
    learning rate. `start` is v before the first round; None means the paper's tau squared, FLamby uses 0.
    """

    learning_rate: Positive = 0.01
    beta1: Fraction = 0.9
    tau: Positive = 1e-3
    start: NotNegative | None = None

    supports_secure_aggregation = True

    def init(self, weights: Weights) -> State:
        root = self.tau if self.start is None else self.start**0.5
        momentum = zeros_for_state(weights)
        return {
            "momentum": momentum,
            "root_second_moment": {name: torch.full_like(zeros, root) for name, zeros in momentum.items()},
        }

    def second_moment(self, moment: Tensor, delta: Tensor) -> Tensor:
        """Return the new v, element by element, in float64; v (`moment`) and `delta` may be overwritten."""
        raise NotImplementedError

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        momentum_before = state_group(state, "momentum", self)
        root_before = state_group(state, "root_second_moment", self)
        merged: dict[str, Tensor] = {}
        momentum: dict[str, Tensor] = {}
        root: dict[str, Tensor] = {}
        for block in stepped_blocks(sites, shares(sites), weights, merged):
            dtype = state_dtype(block.tensor.dtype)
            delta = block.delta()
            first = state_block(momentum_before, block).lerp_(delta, 1 - self.beta1)
            scale = self.second_moment(state_block(root_before, block).square_(), delta)
            # numpy's root takes half of torch's time.
            np.sqrt(scale.numpy(), out=scale.numpy())
            write_block(momentum, block, first, sites, dtype)
            write_block(root, block, scale, sites, dtype)
            step = block.weights().addcdiv_(first, scale.add_(self.tau), value=self.learning_rate)
            write_block(merged, block, step, sites)
        return merged, {"momentum": momentum, "root_second_moment": root}
