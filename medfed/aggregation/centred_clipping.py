"""Centred clipping: a step from the last round's delta towards each site's, none longer than a radius.

Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021, arXiv:2012.10333:
v <- v + 1/n sum (x_k - v) min(1, tau / |x_k - v|), starting from the last round's v. Because it remembers,
attackers who hide within the sites' noise each round ("a little is enough") can't add up over rounds.

Departures. The paper clips the workers' momentum, we the deltas of a whole local training. tau is the median
distance to v unless set, since a useful tau depends on network, learning rate and epoch. v is a combination
of the deltas and of its old self, so the steps run on their scalar products: two passes over the updates
however many `steps`. Batch norm's running statistics are not remembered, for a step repeated could carry a
variance below zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from medfed.aggregation._distances import lengths_from, scalar_products
from medfed.aggregation._reduce import part_of, sums, write, write_as
from medfed.aggregation._rule import (
    AtLeastOne,
    Positive,
    Rule,
    State,
    by_site,
    carried,
    is_running_statistic,
    state_dtype,
    zeros_for_state,
)
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class CentredClipping(Rule, frozen=True, tag="centred_clipping"):
    """Steps from the last round's delta towards each site's, none longer than `radius`."""

    radius: Positive | None = None
    steps: AtLeastOne = 3

    needs_each_update: ClassVar[bool] = True

    def init(self, weights: Weights) -> State:
        return {"centre": zeros_for_state(weights)}

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        before = carried(state, "centre", self)
        # One coefficient a site; the last is that of the old centre.
        *factors, kept = self._clipped(scalar_products(sites, weights, extra=before)).tolist()
        merged: dict[str, Tensor] = {}
        after: dict[str, Tensor] = {}
        for block in sums(sites, factors, weights):
            if is_running_statistic(block.name):
                write(merged, block, block.model(), sites)
                continue
            centre = part_of(before, block).mul_(kept).add_(block.delta())
            write_as(after, block, centre, sites, state_dtype(block.tensor.dtype))
            write(merged, block, block.weights().add_(centre), sites)
        return merged, {"centre": after}

    def _clipped(self, products: Tensor) -> Tensor:
        """Return the centre's coefficients over the sites' deltas and the old centre; they sum to one."""
        now = torch.zeros(len(products), dtype=torch.float64)
        now[-1] = 1.0
        for _ in range(self.steps):
            apart = lengths_from(products, now)[:-1]
            radius = float(apart.median()) if self.radius is None else self.radius
            reach = torch.where(apart <= radius, 1.0, radius / apart) / len(apart)
            now = now * (1 - reach.sum())
            now[:-1] += reach
        return now
