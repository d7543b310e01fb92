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

from medfed.aggregation._krum import krum_mean
from medfed.aggregation._rule import AtLeastOne, Count, Merged, Rule, State, Updates
from medfed.aggregation._updates import newest_round, require_sites, validated_updates
from medfed.errors import RuleError
from medfed.wire.weights import Weights


class MultiKrum(Rule, frozen=True, tag="multi_krum"):
    """Mean of the `keep` sites closest to their neighbours; withstands `attackers` of 2 `attackers` + 3.

    With `mixing` each site's model is first replaced by the mean of the models nearest to it.
    """

    attackers: Count = 1
    keep: AtLeastOne | None = None
    mixing: bool = False

    @property
    def min_sites(self) -> int:
        return max(2 * self.attackers + 3, (self.keep or 1) + self.attackers + 2)

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        largest_keep = len(sites) - self.attackers - 2
        require_sites(sites, 2 * self.attackers + 3, self, f"2 * {self.attackers} attackers + 3")
        keep = largest_keep if self.keep is None else self.keep
        if keep > largest_keep:
            raise RuleError(
                f"multi_krum for round {newest_round(sites)}: keep {keep} of {len(sites)} sites; at "
                f"least {self.min_sites} are needed; with {self.attackers} attackers keep can be at "
                f"most {largest_keep}"
            )
        return krum_mean(sites, weights, self.attackers, self.mixing, keep), state
