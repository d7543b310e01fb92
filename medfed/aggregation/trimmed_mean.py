"""Trimmed mean: of each weight's values the largest and smallest are dropped, the rest averaged.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
ICML 2018, arXiv:1803.01498, option II. It withstands as many sites as are dropped at each end. Departures:
`trim` is a number of sites, where the paper's beta is a fraction (of four sites, a fifth is none, and the
rule would silently be a mean); the mean is of models, where the paper's is of gradients. Sites count alike
whatever their examples. All sites' tensors of one name are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._reduce import matrices, write
from medfed.aggregation._rule import Count, Rule, State, by_site, newest
from medfed.aggregation._sorting import mean_of, sorted_rows
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class TrimmedMean(Rule, frozen=True, tag="trimmed_mean"):
    """Mean of each weight without its `trim` largest and smallest values; withstands `trim` sites."""

    trim: Count = 1

    needs_each_update: ClassVar[bool] = True

    def fewest_sites(self) -> int:
        return 2 * self.trim + 1

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        if len(sites) < self.fewest_sites():
            raise RuleError(
                f"trimmed_mean for round {newest(sites)}: trim {self.trim} drops {2 * self.trim} of "
                f"{len(sites)} sites' values, at least {self.fewest_sites()} are needed; with {len(sites)} "
                f"sites trim "
                f"can be at most {(len(sites) - 1) // 2}"
            )
        merged: dict[str, Tensor] = {}
        for block, models in matrices(sites, weights):
            kept = sorted_rows(models)[self.trim : len(sites) - self.trim]
            write(merged, block, mean_of(kept), sites)
        return merged, state
