"""Median: each weight becomes the median of the sites' values of it.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
ICML 2018, arXiv:1803.01498, option I. It withstands fewer than half of the sites. Sites count alike whatever
their examples, as in the paper: a weight by a number that a site states itself would let it buy the majority.
Departure: the median is of models, where the paper's is of gradients. All sites' tensors of one name are in
memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._reduce import matrices, write
from medfed.aggregation._rule import Rule, State, by_site
from medfed.aggregation._sorting import median_of, sorted_rows
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class Median(Rule, frozen=True, tag="median"):
    """Median of the sites' values of each weight; withstands fewer than half of the sites."""

    needs_each_update: ClassVar[bool] = True

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        merged: dict[str, Tensor] = {}
        for block, models in matrices(sites, weights):
            write(merged, block, median_of(sorted_rows(models)), sites)
        return merged, state
