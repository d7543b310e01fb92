"""Pairwise distances and scalar products of the sites' updates over all tensors, in one pass and float64.

Both tables are small (sites times sites), so what a rule does with them, such as Weiszfeld's hundreds of
steps, needs no further pass over the updates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfed.aggregation._reduce import stacked_blocks
from medfed.aggregation._updates import newest_round
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights


def squared_distances(sites: Sequence[Update], weights: Weights) -> Tensor:
    """Return the (sites, sites) squared Euclidean distances between the sites' models.

    They are computed from differences, not from scalar products: equal models are at distance 0 exactly, so
    ties stay ties, and one huge update costs the other distances no precision. A distance that overflows
    float64 is infinite.

    Raises:
        RuleError: naming a site whose update is not finite.
    """
    pairs = torch.zeros(len(sites) * (len(sites) - 1) // 2, dtype=torch.float64)
    for _, rows in stacked_blocks(sites, weights):
        if rows.shape[1]:
            pairs.add_(torch.pdist(rows).square_())
    table = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    above = torch.triu_indices(len(sites), len(sites), offset=1)
    table[above[0], above[1]] = pairs
    table += table.T.clone()
    _refuse_nan(table, sites)
    return table


def scalar_products(sites: Sequence[Update], weights: Weights, extra: Weights | None = None) -> Tensor:
    """Return the scalar products between the sites' deltas, with `extra` as the last row if it is given.

    The products of models would be dominated by the global weights that they share, which are much
    longer than any delta.

    Raises:
        RuleError: naming a site whose products are not finite.
    """
    count = len(sites) + (extra is not None)
    table = torch.zeros(count, count, dtype=torch.float64)
    for _, rows in stacked_blocks(sites, weights, models=False, extra=extra):
        table.addmm_(rows, rows.T)
    _refuse_nan(torch.where(table.isfinite(), table, torch.nan), sites)
    # The two halves may differ in the last bit, because a matrix product sums them in different orders.
    return (table + table.T) / 2


def distances_to(products: Tensor, centre: Tensor) -> Tensor:
    """Return each vector's distance to the combination of all vectors with the coefficients `centre`.

    The coefficients must sum to one. The distance comes from the difference of coefficients, which is small
    and exact near a vector, and not from |x|^2 - 2xz + |z|^2, whose three large terms would cancel there.
    """
    difference = centre - torch.eye(len(products), dtype=torch.float64)
    return ((difference @ products) * difference).sum(1).clamp_(min=0).sqrt_()


def _refuse_nan(table: Tensor, sites: Sequence[Update]) -> None:
    bad = table.isnan().sum(1)[: len(sites)]
    if bool(bad.any()):
        site = sites[int(bad.argmax())].site
        raise RuleError(
            f"merge for round {newest_round(sites)}: the update of site '{site}' has values that are "
            f"not finite or too large to be compared with the others; training diverged there"
        )
