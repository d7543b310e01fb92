"""Multi-Krum: the mean of the sites that lie closest to their neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, arXiv:1703.02757, section 4: Krum's scores, and the mean of the m sites with the
lowest. It averages away the sites' noise, which Krum's single choice keeps. n must be at least 2f + 3. As
Krum it assumes sites whose data are alike; `mixing` (see `_mixing`) is for hospitals that differ.
Departures: models, where the paper takes gradients; m is n - f - 2 unless set, the largest for which the
paper's resilience is proven; sites count alike. Two passes over the updates, the first with all sites'
tensors of one name in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._distances import squared_distances
from medfed.aggregation._krum import best, factors_of, mixed_if
from medfed.aggregation._reduce import sums, write
from medfed.aggregation._rule import AtLeastOne, Count, Rule, State, at_least, by_site, newest
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class MultiKrum(Rule, frozen=True, tag="multi_krum"):
    """Mean of the `keep` sites closest to their neighbours; withstands `attackers` of 2 `attackers` + 3.

    With `mixing` each site's model is first replaced by the mean of those nearest to it.
    """

    attackers: Count = 1
    keep: AtLeastOne | None = None
    mixing: bool = False

    needs_each_update: ClassVar[bool] = True

    def fewest_sites(self) -> int:
        return max(2 * self.attackers + 3, (self.keep or 1) + self.attackers + 2)

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        most = len(sites) - self.attackers - 2
        at_least(sites, 2 * self.attackers + 3, self, f"2 * {self.attackers} attackers + 3")
        keep = most if self.keep is None else self.keep
        if keep > most:
            raise RuleError(
                f"multi_krum for round {newest(sites)}: keep {keep} of {len(sites)} sites; at "
                f"least {self.fewest_sites()} are needed; with {self.attackers} attackers keep can be at "
                f"most {most}"
            )
        distances, table = mixed_if(self.mixing, squared_distances(sites, weights), self.attackers)
        factors = factors_of(best(distances, range(len(sites)), most, count=keep), table)
        chosen = [sites[i] for i in factors]
        merged: dict[str, Tensor] = {}
        for block in sums(chosen, list(factors.values()), weights):
            write(merged, block, block.model(), chosen)
        return merged, state
