"""Bulyan: Krum chooses sites one by one, then each weight is averaged over the values near the median.

El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018,
arXiv:1802.07927: theta = n - 2f sites are chosen by repeated Krum, then each weight is the mean of the
beta = theta - 2f values closest to the median of the chosen. An attacker whom Krum chose because it
differs in a few weights only, which hardly adds to its distance in a large model, is outvoted there. n
must be at least 4f + 3.

Departures. The rule averages models, the paper gradients. Krum's n - f - 2 neighbours would be none among the
last few sites, so at least one counts. Of equal scores the first site by name wins, of equally near values
the smaller. Like Krum, the rule assumes sites with similar data; `mixing` (see `_mixing`) is for hospitals
that differ. It makes two passes over the updates, both with all sites' tensors of one name in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.aggregation._krum import distances_and_mixing, select_lowest
from medfed.aggregation._reduce import stacked_blocks, write_block
from medfed.aggregation._rule import Count, Merged, Rule, State, Updates
from medfed.aggregation._sorting import mean_row, sorted_median, sorted_rows
from medfed.aggregation._updates import require_sites, validated_updates
from medfed.wire.weights import Weights


class Bulyan(Rule, frozen=True, tag="bulyan"):
    """Repeated Krum, then a mean near each weight's median; withstands `attackers` of 4 `attackers` + 3.

    With `mixing` each site's model is first replaced by the mean of the models nearest to it.
    """

    attackers: Count = 1
    mixing: bool = False

    @property
    def min_sites(self) -> int:
        return 4 * self.attackers + 3

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        require_sites(sites, self.min_sites, self, f"4 * {self.attackers} attackers + 3")
        distances, table = distances_and_mixing(sites, weights, self.attackers, self.mixing)
        rows = table[self._chosen(distances)]
        # A site that contributes to no chosen model is not read: its values may be of any size.
        contributes = rows.sum(0) > 0
        among = [site for site, used in zip(sites, contributes.tolist(), strict=True) if used]
        merged: dict[str, Tensor] = {}
        for block, models in stacked_blocks(among, weights):
            chosen = rows[:, contributes] @ models if self.mixing else models
            write_block(merged, block, _mean_near_median(sorted_rows(chosen), 2 * self.attackers), sites)
        return merged, state

    def _chosen(self, distances: Tensor) -> list[int]:
        remaining = list(range(len(distances)))
        chosen = []
        for _ in range(len(distances) - 2 * self.attackers):
            (one,) = select_lowest(distances, remaining, max(1, len(remaining) - self.attackers - 2), count=1)
            remaining.remove(one)
            chosen.append(one)
        return sorted(chosen)


def _mean_near_median(ordered: list[Tensor], drop: int) -> Tensor:
    """Return the mean of all but the `drop` values farthest from the median, element by element."""
    # The values closest to the median are consecutive in sorted order, so they are one of drop + 1 windows:
    # the one whose farther end is nearest, and of equally far ends the one with the smaller mean distance.
    median = sorted_median(ordered)
    beta = len(ordered) - drop
    nearest = torch.full_like(median, torch.inf)
    tightest = torch.full_like(median, torch.inf)
    mean = torch.full_like(median, torch.nan)
    for first in range(drop + 1):
        window = ordered[first : first + beta]
        reach = torch.maximum(median - window[0], window[-1] - median)
        spread = mean_row([(value - median).abs_() for value in window])
        closer = (reach < nearest) | ((reach == nearest) & (spread < tightest))
        # Each window is summed anew: in an updated sum, an attacker's 1e30 would destroy every other digit.
        mean = torch.where(closer, mean_row(window), mean)
        nearest = torch.where(closer, reach, nearest)
        tightest = torch.where(closer, spread, tightest)
    # No window is nearest only if values are not finite; the mean is then NaN, which `write_block` refuses.
    return mean
