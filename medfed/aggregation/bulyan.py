"""Bulyan: Krum chooses sites one by one, then each weight is averaged over the values near the median.

El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018,
arXiv:1802.07927: theta = n - 2f sites are chosen by repeated Krum, then each weight is the mean of the beta =
theta - 2f values closest to the median of the chosen. An attacker whom Krum chose because it differs in a few
weights only, which in a large model hardly adds to its distance, is outvoted there. n must be at least 4f +
3. Departures: models, where the paper takes gradients; Krum's n - f - 2 neighbours would be none among the
last few sites, so at least one is looked at; equal scores go to the first site by name, equally near values
to the smaller. As Krum it assumes sites whose data are alike; `mixing` (see `_mixing`) is for hospitals that
differ. Two passes over the updates, both with all sites' tensors of one name in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from medfed.aggregation._distances import squared_distances
from medfed.aggregation._krum import best, mixed_if
from medfed.aggregation._reduce import matrices, write
from medfed.aggregation._rule import Count, Rule, State, at_least, by_site
from medfed.aggregation._sorting import mean_of, median_of, sorted_rows
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class Bulyan(Rule, frozen=True, tag="bulyan"):
    """Repeated Krum, then a mean near each weight's median; withstands `attackers` of 4 `attackers` + 3.

    With `mixing` each site's model is first replaced by the mean of those nearest to it.
    """

    attackers: Count = 1
    mixing: bool = False

    needs_each_update: ClassVar[bool] = True

    def fewest_sites(self) -> int:
        return 4 * self.attackers + 3

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        at_least(sites, self.fewest_sites(), self, f"4 * {self.attackers} attackers + 3")
        distances, table = mixed_if(self.mixing, squared_distances(sites, weights), self.attackers)
        rows = table[self._chosen(distances)]
        # A site that is in none of the chosen is not looked at: its values may be of any size.
        within = rows.sum(0) > 0
        among = [site for site, used in zip(sites, within.tolist(), strict=True) if used]
        merged: dict[str, Tensor] = {}
        for block, models in matrices(among, weights):
            chosen = rows[:, within] @ models if self.mixing else models
            write(merged, block, _mean_near_median(sorted_rows(chosen), 2 * self.attackers), sites)
        return merged, state

    def _chosen(self, distances: Tensor) -> list[int]:
        left = list(range(len(distances)))
        chosen = []
        for _ in range(len(distances) - 2 * self.attackers):
            (one,) = best(distances, left, max(1, len(left) - self.attackers - 2), count=1)
            left.remove(one)
            chosen.append(one)
        return sorted(chosen)


def _mean_near_median(ordered: list[Tensor], drop: int) -> Tensor:
    """Return the mean of all but the `drop` values farthest from the median, element by element."""
    # The values closest to the median are neighbours in the order, so they are one of drop + 1 windows: the
    # one whose farther end is nearest, and of equally far ends the one whose values are nearer together.
    median = median_of(ordered)
    beta = len(ordered) - drop
    nearest = torch.full_like(median, torch.inf)
    tightest = torch.full_like(median, torch.inf)
    found = torch.full_like(median, torch.nan)
    for first in range(drop + 1):
        window = ordered[first : first + beta]
        reach = torch.maximum(median - window[0], window[-1] - median)
        apart = mean_of([(value - median).abs_() for value in window])
        closer = (reach < nearest) | ((reach == nearest) & (apart < tightest))
        # A window is summed afresh: from the last one's sum, an attacker's 1e30 would leave no digit of the
        # rest.
        found = torch.where(closer, mean_of(window), found)
        nearest = torch.where(closer, reach, nearest)
        tightest = torch.where(closer, apart, tightest)
    # Only among values that are not finite is no window the nearest; what stays is then NaN, and `write` says
    # so.
    return found
