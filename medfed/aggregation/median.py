"""Median: each weight becomes the median of the sites' values of it.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates, ICML 2018, arXiv:1803.01498, option I. It withstands fewer than half of the sites. Sites count
equally whatever their examples, as in the paper: a site that could weight itself by a number it states
could buy the majority.
Departure: the median is of models, the paper's of gradients. All sites' tensors of one name are in memory at
once.
"""

from __future__ import annotations

from torch import Tensor

from medfed.aggregation._reduce import stacked_blocks, write_block
from medfed.aggregation._rule import Merged, Rule, State, Updates
from medfed.aggregation._sorting import sorted_median, sorted_rows
from medfed.aggregation._updates import validated_updates
from medfed.wire.weights import Weights


class Median(Rule, frozen=True, tag="median"):
    """Median of the sites' values of each weight; withstands fewer than half of the sites."""

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        merged: dict[str, Tensor] = {}
        for block, models in stacked_blocks(sites, weights):
            write_block(merged, block, sorted_median(sorted_rows(models)), sites)
        return merged, state
