"""Trimmed mean: the mean of each weight's values without the largest and the smallest ones.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
ICML 2018, arXiv:1803.01498, option II. It withstands as many sites as are dropped at each end. Departures:
`trim` is a number of sites, the paper's beta a fraction (a fifth of four sites is none, and the rule would
silently be a mean); the mean is of models, the paper's of gradients. Sites count equally whatever their
examples. All sites' tensors of one name are in memory at once.
"""

from __future__ import annotations

from torch import Tensor

from medfed.aggregation._reduce import stacked_blocks, write_block
from medfed.aggregation._rule import Count, Merged, Rule, State, Updates
from medfed.aggregation._sorting import mean_row, sorted_rows
from medfed.aggregation._updates import newest_round, validated_updates
from medfed.errors import RuleError
from medfed.wire.weights import Weights


class TrimmedMean(Rule, frozen=True, tag="trimmed_mean"):
    """Mean of each weight without its `trim` largest and smallest values; withstands `trim` sites."""

    trim: Count = 1

    @property
    def min_sites(self) -> int:
        return 2 * self.trim + 1

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        if len(sites) < self.min_sites:
            raise RuleError(
                f"trimmed_mean for round {newest_round(sites)}: trim {self.trim} drops {2 * self.trim} of "
                f"{len(sites)} sites' values, at least {self.min_sites} are needed; with {len(sites)} "
                f"sites trim can be at most {(len(sites) - 1) // 2}"
            )
        merged: dict[str, Tensor] = {}
        for block, models in stacked_blocks(sites, weights):
            middle = sorted_rows(models)[self.trim : len(sites) - self.trim]
            write_block(merged, block, mean_row(middle), sites)
        return merged, state
