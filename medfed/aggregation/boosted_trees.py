"""Gradient-boosted trees: the hub grows the next level of a tree from sums over all hospitals.

Chen, Guestrin: XGBoost: A Scalable Tree Boosting System, KDD 2016, arXiv:1603.02754 (the gain of a split,
equations 6 and 7; learned directions of missing values, algorithm 3); histograms as in Ke et al.: LightGBM,
NeurIPS 2017, and scikit-learn's HistGradientBoosting. Sums over hospitals in place of rows as in XGBoost's
federated plug-in, whose hospitals agree on bins by sending summaries of their values.

Here no summary of values is sent. The first rounds count patients between edges that everybody knows, powers
of two; the hub joins cells of few patients and halves full ones, so that every edge is a number that followed
from counts alone. Then each round sums, over the patients in each node of one level, gradients, hessians and
numbers of patients by bin. With `network: {kind: boosted_trees}` each site sends these sums divided by its
examples, in a tensor of the model; what it sends for the trees themselves is ignored.

Departures: trees grow level by level to a depth (LightGBM grows leaf by leaf); sums are of multiples of 2^-22
and values of multiples of 2^-30, so that any division of the patients into hospitals, and a secure sum of 64
bits, gives the same trees, bit for bit; no rows or features are left out at random.

A model without trees gets the mean of its sites, as under `fedavg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import torch
from torch import Tensor

from medfed.aggregation import _tree_growing
from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import AtLeastOne, Merged, NotNegative, Rule, State, Updates
from medfed.aggregation._tree_growing import GRID, Array, Growth
from medfed.aggregation._updates import describe, newest_round, shares, validated_updates
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# The names of a tree model's tensors, after the name of the module that holds them.
TENSORS = (
    "cursor", "classifies", "edges", "base", "feature", "threshold", "missing_left", "value", "sums",
)  # fmt: skip

# How far a sum may be from a multiple of the grid, in steps of the grid: rounding of means is far below.
TOLERANCE = 0.25


class BoostedTrees(Rule, frozen=True, tag="boosted_trees"):
    """Grows the next level of gradient-boosted trees from sums over all hospitals.

    `learning_rate` scales each tree, `l2` is added to the hessians of a leaf, `min_child_weight` is the least
    sum of hessians of a leaf and `min_patients` the fewest patients, of all hospitals together; `min_gain` is
    what a split must gain. No more bin edges are made than leave about `min_patients` patients in each bin.
    """

    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    l2: NotNegative = 1.0
    min_child_weight: NotNegative = 1e-3
    min_patients: AtLeastOne = 20
    min_gain: NotNegative = 0.0

    supports_secure_aggregation = True

    def check(self, update: Update) -> None:
        """Refuse sums that no patients can have: negative numbers, or others in one feature than in another.

        Raises:
            RuleError: naming the site and the round.
        """
        name = _sums_name(update.delta)
        if name is None:
            return
        sums = update.delta[name].double()
        each = sums[..., 2].sum(-1)  # (K, M, F)
        step = GRID / update.examples
        if float(sums[..., 1:].min()) < -step or float(each.amax() if each.numel() else 0) > 1 + step:
            raise RuleError(
                f"{describe(update)}: its sums have negative hessians or numbers of patients, or more "
                "patients than examples; does it run the same version of medfed?"
            )
        totals = sums.sum(-2)  # (K, M, F, 3): each feature's bins hold the same patients
        if totals.numel() and float((totals - totals[:, :, :1]).abs().amax()) > step:
            raise RuleError(
                f"{describe(update)}: its sums over the bins of one feature differ from those of another, "
                "and both are of the same patients; does it run the same version of medfed?"
            )

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        merged = add_weighted_deltas(sites, shares(sites), weights)
        name = _sums_name(weights)
        if name is None:
            return merged, state
        prefix = name.removesuffix("sums")
        before = {one: _array(weights[prefix + one]) for one in TENSORS}
        total = _whole(_array(merged[name]) - before["sums"], sites)
        growth = msgspec.convert(self, Growth, from_attributes=True)
        after = _tree_growing.grown(before, total, growth)
        grown = {prefix + one: torch.from_numpy(after[one]) for one in TENSORS}
        return {one: grown.get(one, tensor) for one, tensor in merged.items()}, state


def _sums_name(weights: Weights) -> str | None:
    """Return the name of a tree model's sums, or None if the model has no trees."""
    for name in weights:
        prefix = name.removesuffix("sums")
        if name.split(".")[-1] == "sums" and all(prefix + one in weights for one in TENSORS):
            return name
    return None


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.double().numpy())


def _whole(mean: Array, sites: Sequence[Update]) -> Array:
    """Return the sums over all patients from their mean: multiples of the grid, and whole patients.

    Raises:
        RuleError: if they are not: what was sent is no sum, or was rounded on its way.
    """
    units = np.array([GRID, GRID, 1.0])
    steps = mean * sum(update.examples for update in sites) / units
    whole = np.rint(steps)
    error = (np.abs(steps - whole) * units).max(initial=0)
    if error > TOLERANCE * GRID or np.abs(whole).max(initial=0) >= 2.0**52:
        raise RuleError(
            f"round {newest_round(sites)}: the sums over all hospitals are no multiples of 2^-22, or no "
            "whole numbers of patients: a secure sum of 32 bits, a compression, or examples that are not the "
            "patients that a site summed (FederatedCallback(examples=...)); correct that, and start again"
        )
    return np.asarray(whole * units)
