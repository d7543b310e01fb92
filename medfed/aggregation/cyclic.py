"""Cyclic weight transfer: one site trains a round, and its model goes to the next site as it is.

Chang, Balachandar, Lam, Yi, Brown, Beers, Rosen, Rubin, Kalpathy-Cramer: Distributed deep learning networks
among institutions for medical imaging, JAMIA 2018, doi:10.1093/jamia/ocy017. Which site is next is the hub's
sampling, not this rule's: it takes the one update there is. Nothing is rounded: the new weights are the
site's own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._reduce import sums, write
from medfed.aggregation._rule import Rule, State, by_site, newest
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class Cyclic(Rule, frozen=True, tag="cyclic"):
    """The one site's model as it is; sites take turns."""

    most_sites: ClassVar[int | None] = 1

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        if len(sites) > 1:
            names = ", ".join(f"'{update.site}'" for update in sites)
            raise RuleError(
                f"cyclic for round {newest(sites)}: {len(sites)} sites answered ({names}), exactly 1 is "
                f"expected; "
                f"let the hub ask one site a round"
            )
        merged: dict[str, Tensor] = {}
        for block in sums(sites, [1.0], weights):
            write(merged, block, block.model(), sites)
        return merged, state
