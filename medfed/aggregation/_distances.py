"""How far sites' updates lie from each other, over all tensors together, in one pass and float64.

Both tables are kept small (sites times sites), so that whatever a rule does with them, such as Weiszfeld's
hundreds of steps, costs no further pass over the updates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfed.aggregation._reduce import matrices
from medfed.aggregation._rule import newest
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights


def squared_distances(sites: Sequence[Update], weights: Weights) -> Tensor:
    """Return the (sites, sites) squared Euclidean distances between the sites' models.

    Of differences, not from scalar products: equal models are at distance 0 exactly, so that ties are ties,
    and one huge update costs the distances between the others no digit. A distance that leaves float64 is
    infinite.

    Raises:
        RuleError: naming a site whose update is not finite.
    """
    pairs = torch.zeros(len(sites) * (len(sites) - 1) // 2, dtype=torch.float64)
    for _, rows in matrices(sites, weights):
        if rows.shape[1]:
            pairs.add_(torch.pdist(rows).square_())
    table = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    above = torch.triu_indices(len(sites), len(sites), offset=1)
    table[above[0], above[1]] = pairs
    table += table.T.clone()
    _refuse_nan(table, sites)
    return table


def scalar_products(sites: Sequence[Update], weights: Weights, extra: Weights | None = None) -> Tensor:
    """Return the scalar products between the sites' deltas, and of `extra` as the last row where it is given.

    Of deltas, not of models: those share the global weights, which are much longer than any delta and would
    cancel.

    Raises:
        RuleError: naming a site whose products are not finite.
    """
    count = len(sites) + (extra is not None)
    table = torch.zeros(count, count, dtype=torch.float64)
    for _, rows in matrices(sites, weights, models=False, extra=extra):
        table.addmm_(rows, rows.T)
    _refuse_nan(torch.where(table.isfinite(), table, torch.nan), sites)
    # The two halves may differ in a last bit, for a matrix product sums them in another order.
    return (table + table.T) / 2


def lengths_from(products: Tensor, centre: Tensor) -> Tensor:
    """Return the distance of each row's vector from the one that `centre` combines of them.

    Where the coefficients sum to one. Of the difference of coefficients rather than as |x|^2 - 2xz + |z|^2:
    near a vector its coefficients' difference is small and loses no digit, where the three large terms would
    cancel.
    """
    apart = centre - torch.eye(len(products), dtype=torch.float64)
    return ((apart @ products) * apart).sum(1).clamp_(min=0).sqrt_()


def _refuse_nan(table: Tensor, sites: Sequence[Update]) -> None:
    bad = table.isnan().sum(1)[: len(sites)]
    if bool(bad.any()):
        site = sites[int(bad.argmax())].site
        raise RuleError(
            f"merge for round {newest(sites)}: the update of site '{site}' has values that are not finite, "
            f"or too "
            f"large to be compared with the others; training diverged there"
        )
