"""Cyclic weight transfer: one site trains in each round, and its model goes to the next site unchanged.

Chang, Balachandar, Lam, Yi, Brown, Beers, Rosen, Rubin, Kalpathy-Cramer: Distributed deep learning networks
among institutions for medical imaging, JAMIA 2018, doi:10.1093/jamia/ocy017. The hub's sampling
decides which site is next; this rule takes the one update. Nothing is rounded: the new weights are the site's
own, bit for bit.
"""

from __future__ import annotations

from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import Merged, Rule, State, Updates
from medfed.aggregation._updates import newest_round, validated_updates
from medfed.errors import RuleError
from medfed.wire.weights import Weights


class Cyclic(Rule, frozen=True, tag="cyclic"):
    """The model of the one site that answered, unchanged; sites take turns."""

    max_sites = 1

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        if len(sites) > 1:
            names = ", ".join(f"'{update.site}'" for update in sites)
            raise RuleError(
                f"cyclic for round {newest_round(sites)}: {len(sites)} sites answered ({names}), exactly 1 "
                f"is expected; let the hub ask one site per round"
            )
        return add_weighted_deltas(sites, [1.0], weights), state
