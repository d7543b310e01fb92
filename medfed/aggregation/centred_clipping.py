"""Centred clipping: steps from the last round's delta towards each site's delta, none longer than a radius.

Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021, arXiv:2012.10333:
v <- v + 1/n sum (x_k - v) min(1, tau / |x_k - v|), starting from the last round's v. Thanks to this memory,
attackers who hide within the sites' noise each round ("a little is enough") cannot accumulate over rounds.

Departures. The paper clips the workers' momentum, this rule the deltas of a whole local training. tau is the
median distance to v unless set, because a useful tau depends on network, learning rate and epoch. v is a
combination of the deltas and the previous v, so the steps run on their scalar products: there are two passes
over the updates for any number of `steps`. Batch norm's running statistics are averaged without memory,
because a repeated step could carry a variance below zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.aggregation._distances import distances_to, scalar_products
from medfed.aggregation._reduce import stepped_blocks, write_block
from medfed.aggregation._rule import AtLeastOne, Merged, Positive, Rule, State, Updates
from medfed.aggregation._state import state_block, state_dtype, state_group, zeros_for_state
from medfed.aggregation._updates import validated_updates
from medfed.wire.weights import Weights


class CentredClipping(Rule, frozen=True, tag="centred_clipping"):
    """Steps from the last round's delta towards each site's delta, none longer than `radius`."""

    radius: Positive | None = None
    steps: AtLeastOne = 3

    def init(self, weights: Weights) -> State:
        return {"centre": zeros_for_state(weights)}

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        before = state_group(state, "centre", self)
        # One coefficient per site; the last one is the old centre's.
        *factors, memory = self._clipped(scalar_products(sites, weights, extra=before)).tolist()
        merged: dict[str, Tensor] = {}
        after: dict[str, Tensor] = {}
        for block in stepped_blocks(sites, factors, weights, merged):
            centre = state_block(before, block).mul_(memory).add_(block.delta())
            write_block(after, block, centre, sites, state_dtype(block.tensor.dtype))
            write_block(merged, block, block.weights().add_(centre), sites)
        return merged, {"centre": after}

    def _clipped(self, products: Tensor) -> Tensor:
        """Return the centre's coefficients over the sites' deltas and the old centre; they sum to one."""
        centre = torch.zeros(len(products), dtype=torch.float64)
        centre[-1] = 1.0
        for _ in range(self.steps):
            distances = distances_to(products, centre)[:-1]
            radius = float(distances.median()) if self.radius is None else self.radius
            reach = torch.where(distances <= radius, 1.0, radius / distances) / len(distances)
            centre = centre * (1 - reach.sum())
            centre[:-1] += reach
        return centre
