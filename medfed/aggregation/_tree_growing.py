"""How the hub grows trees from sums over hospitals: bin edges from counts, and splits from histograms.

A model of boosted trees is a set of float64 arrays (`models/networks/_tree_ensemble.py` builds it). T trees
of each of K outputs have N = 2^(depth + 1) - 1 nodes; the children of node i are 2i + 1
and 2i + 2.

    cursor (3,)          the rounds that chose bin edges, the tree that grows now, and its level
    classifies (1,)      1 if outputs are log odds, 0 if they are a logarithm of risk
    edges (F, B - 1)     of each feature's bins, ascending; value x is in the bin of the number of edges <= x
    base (K,)            what every prediction starts from
    feature (T, K, N)    the feature that a node splits on, -1 at a leaf
    threshold (T, K, N)  values below it go left
    missing_left (T, K, N)  1 if a missing value goes left
    value (T, K, N)      what a patient whose path ends in the node adds to the output
    sums (K, M, F, B + 1, 3)  of the patients in each of the level's M nodes, by feature and bin (the last is
                         of missing values): gradients, hessians, and how many there are

In the hub's model `sums` is zero; a site fills it with its own sums divided by its examples, so that the
mean weighted by examples is the sum over all hospitals, divided by all examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Mapping[str, Array]

# The rounds that choose bin edges before the first tree: powers of two, then finer and finer cells.
SKETCHES = 4

# An edge where there is none: larger than every float32, the largest number that a table may hold.
NO_EDGE = 1e39

# Sums are of multiples of this, so that adding them is exact in every order; it is far below what decides a
# split, and far above the rounding of means (2^-53) and of a secure sum of 64 bits (see `secure_sum.py`).
GRID = 2.0**-22

# Values of leaves are multiples of this, so that adding trees is exact in every order.
VALUE_GRID = 2.0**-30

# How far the outermost cells reach: the first edges end at 2^15.
OUTERMOST = 2.0**31

# The smallest share of a class in `base`, which is a logarithm of it.
SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class Growth:
    """When the hub splits a node and what a leaf says; `boosted_trees.py` explains each."""

    learning_rate: float
    l2: float
    min_child_weight: float
    min_patients: int
    min_gain: float


def grown(model: Model, total: Array, growth: Growth) -> dict[str, Array]:
    """Return the model after one more round, from the sums over all hospitals.

    `total` has the shape of `sums`, and holds whole multiples of GRID.
    """
    after = {name: array.copy() for name, array in model.items()}
    sketched, tree, level = (int(number) for number in model["cursor"])
    if sketched < SKETCHES:
        after["edges"] = _finer_edges(model["edges"], total[0, 0, :, :, 2], growth.min_patients)
        after["cursor"][0] += 1
        if after["cursor"][0] == SKETCHES:
            after["base"] = _base(total[:, 0, 0].sum(axis=1), bool(model["classifies"][0]))
        return after
    trees, outputs, nodes = model["feature"].shape
    if tree >= trees:
        return after
    for output in range(outputs):
        _grow_level(after, (tree, output), level, total[output], growth)
    depth = (nodes + 1).bit_length() - 2
    after["cursor"][1:] = (tree, level + 1) if level + 1 < depth else (tree + 1, 0)
    return after


def _base(root: Array, classifies: bool) -> Array:
    """Return the logarithms of the classes' odds from the root's sums (K, 3) at predictions of 0.

    A gradient there is 1/K (a half for one output) minus the share of the class. Several logarithms
    are centred, as scikit-learn's.
    """
    if not classifies:
        return np.zeros(len(root))
    expected = 1 / len(root) if len(root) > 1 else 0.5
    share = np.clip(expected - root[:, 0] / np.maximum(root[:, 2], 1), SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    logarithm = np.log(share)
    logarithm = logarithm - (logarithm.mean() if len(root) > 1 else np.log1p(-share))
    return np.asarray(_on_grid(logarithm))


def _on_grid(values: Any) -> Any:
    return np.rint(values / VALUE_GRID) * VALUE_GRID


# ----------------------------------------------------------------------------------------------------- splits


def _grow_level(
    model: dict[str, Array], place: tuple[int, int], level: int, sums: Array, growth: Growth
) -> None:
    """Split the nodes of one level of a tree, in place, from their sums (M, F, B + 1, 3)."""
    first = 2**level - 1
    for number in range(2**level):
        split = _best_split(sums[number], growth)
        if split is None:
            continue
        node = first + number
        model["feature"][place][node] = split.feature
        model["threshold"][place][node] = model["edges"][split.feature, split.edge]
        model["missing_left"][place][node] = split.missing_left
        model["value"][place][2 * node + 1] = _leaf(split.left, growth)
        model["value"][place][2 * node + 2] = _leaf(split.right, growth)


@dataclass(frozen=True)
class _Split:
    """A feature, its edge, where missing values go, and both sides' sums (3,)."""

    feature: int
    edge: int
    missing_left: bool
    left: Array
    right: Array


def _leaf(sums: Array, growth: Growth) -> float:
    """Return the Newton step of a leaf, scaled by the learning rate."""
    hessian = sums[1] + growth.l2
    return float(_on_grid(-growth.learning_rate * sums[0] / hessian)) if hessian > 0 else 0.0


def _best_split(sums: Array, growth: Growth) -> _Split | None:
    """Return the split of a node that gains most, from its sums (F, B + 1, 3); None if none is allowed.

    Of equal gains the first counts: missing values right, then by feature and edge.
    """
    whole = sums[0].sum(axis=0)
    below = np.cumsum(sums[:, :-1], axis=1)[:, :-1]  # (F, B - 1, 3): left of each edge
    lefts = np.stack([below, below + sums[:, -1:]])  # missing values right, or left
    rights = whole - lefts
    gain = _score(lefts, growth) + _score(rights, growth) - _score(whole, growth)
    allowed = np.isfinite(gain) & (gain > growth.min_gain)
    for side in (lefts, rights):
        allowed &= (side[..., 2] >= growth.min_patients) & (side[..., 1] >= growth.min_child_weight)
    if not allowed.any():
        return None
    best = np.unravel_index(int(np.where(allowed, gain, -np.inf).argmax()), gain.shape)
    direction, feature, edge = (int(number) for number in best)
    left, right = lefts[best], rights[best]
    # Without a missing value to learn from, later ones go with most patients.
    missing_left = bool(direction) if sums[feature, -1, 2] else bool(left[2] > right[2])
    return _Split(feature, edge, missing_left, left, right)


def _score(sums: Array, growth: Growth) -> Array:
    """Return twice how much a Newton step on these patients lowers the loss (Chen, equation 6)."""
    gradient, hessian = sums[..., 0], sums[..., 1] + growth.l2
    return np.asarray(np.where(hessian > 0, gradient**2 / np.where(hessian > 0, hessian, 1), 0.0))


# ------------------------------------------------------------------------------------------------------ edges


def _padded(edges: Array, length: int) -> Array:
    return np.concatenate([edges, np.full(length - len(edges), NO_EDGE)])


def _finer_edges(edges: Array, counts: Array, least: int) -> Array:
    """Return new edges (F, E) from the counts (F, E + 2) of the patients in the present ones' cells.

    Cells of fewer than `least` patients are joined to the next, and the fullest are halved until there are as
    many edges as fit, or as the patients bear.
    """
    return np.stack([_finer(*one, least) for one in zip(edges, counts[:, :-1], strict=True)])


def _finer(edges: Array, counts: Array, least: int) -> Array:
    # Under a secure sum a site that lies can make counts negative; the hub goes on.
    known, counts = edges[edges < NO_EDGE], np.maximum(counts, 0)
    bounds = np.concatenate([[-OUTERMOST], known, [OUTERMOST]])
    cells = _joined(bounds, counts[: len(known) + 1], least)
    most = len(edges) - 1  # the outer sides of the first cell and the last are edges, too
    if len(cells) > most:
        cells = _joined(bounds, counts[: len(known) + 1], -(-int(counts.sum()) // most))
    parts = _parts(cells, most, least)
    inner = [_halved(low, high, int(part)) for (low, high, _), part in zip(cells, parts, strict=True)]
    sides = [cell[0] for cell in cells] + [cell[1] for cell in cells[-1:]]
    sides = [side for side in sides if abs(side) < OUTERMOST]
    return _padded(np.unique(np.concatenate([*inner, sides])), len(edges))


def _parts(cells: Sequence[tuple[float, float, float]], most: int, least: int) -> NDArray[np.int_]:
    """Return into how many parts to cut each cell (low, high, patients), a power of two, `most` in all.

    Many patients of one value fill any cell that holds it, so patients by the square of the parts decide, and
    the other cells are cut, too.
    """
    parts = np.ones(len(cells), int)
    possible = np.array([_most_parts(low, high) for low, high, _ in cells])
    patients = np.array([cell[2] for cell in cells])
    while len(cells):
        may = (parts < possible) & (patients >= 2 * least * parts) & (parts.sum() + parts <= most)
        if not may.any():
            break
        parts[int(np.where(may, patients / parts**2, -1.0).argmax())] *= 2
    return parts


def _joined(bounds: Array, counts: Array, least: float) -> list[tuple[float, float, float]]:
    """Return cells (low, high, patients) of at least `least` patients; only their lower sides become edges.

    Cells of fewer count with such cells beside them, and make one once there are enough in a row.
    One of few patients never widens a full one, which is to be cut.
    """
    cells: list[tuple[float, float, float]] = []
    low, held = 0.0, 0.0
    for number in np.flatnonzero(counts):
        count = float(counts[number])
        if count >= least or not held:
            low, held = float(bounds[number]), 0.0
        held += count
        if held >= least:
            cells.append((low, float(bounds[number + 1]), held))
            held = 0.0
    return cells


def _most_parts(low: float, high: float) -> int:
    """Return into how many parts a cell may be cut now: octaves first, then while numbers differ."""
    octaves = _octaves(low, high)
    if octaves > 1:
        return int(octaves)
    return 1 << 20 if (high - low) > 2.0**-20 * max(abs(low), abs(high)) else 1


def _octaves(low: float, high: float) -> int:
    """Return how many octaves a cell between powers of two of one sign spans, a power of two; else 1."""
    if low * high <= 0:
        return 1
    octaves = abs(np.log2(abs(high) / abs(low)))
    return 1 << int(np.log2(octaves)) if octaves >= 2 else 1


def _halved(low: float, high: float, parts: int) -> Array:
    """Return the parts - 1 edges inside a cell, of equal ratios over octaves, else of equal widths."""
    shares = np.arange(1, parts) / parts
    if _octaves(low, high) > 1:
        sign = 1 if low > 0 else -1
        exponents = np.log2(abs(low)) + shares * (np.log2(abs(high)) - np.log2(abs(low)))
        return np.asarray(sign * 2.0 ** np.rint(exponents))
    return low + shares * (high - low)
