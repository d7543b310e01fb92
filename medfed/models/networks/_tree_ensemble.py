"""The module of boosted trees: what they predict, and the sums from which the hub grows their next level.

aggregation/_tree_growing.py says what each tensor holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

# As in aggregation/_tree_growing.py, which no file of models/ imports; a test compares them.
NO_EDGE = 1e39
GRID = 2.0**-22

# Gradients and hessians (n, K) of scores (n, K).
Derivatives = Callable[[Tensor], tuple[Tensor, Tensor]]


@final
class TreeEnsemble(nn.Module):
    """Predicts (n, outputs) float32 of features (n, F), where NaN is a missing value.

    Two outputs are one ensemble: the first is 0, the second the log odds.
    """

    cursor: Tensor
    classifies: Tensor
    edges: Tensor
    base: Tensor
    feature: Tensor
    threshold: Tensor
    missing_left: Tensor
    value: Tensor
    sums: Tensor

    def __init__(self, features: int, outputs: int, trees: int, depth: int, bins: int) -> None:
        super().__init__()
        self.outputs, self.depth = outputs, depth
        ensembles, nodes = (outputs if outputs > 2 else 1), 2 ** (depth + 1) - 1
        shape = (trees, ensembles, nodes)
        start = {
            "cursor": torch.zeros(3),
            "classifies": torch.ones(1),
            "edges": torch.zeros(features, bins - 1, dtype=torch.float64).copy_(first_edges(bins - 1)),
            "base": torch.zeros(ensembles),
            "feature": torch.zeros(shape) - 1,
            "threshold": torch.zeros(shape),
            "missing_left": torch.zeros(shape),
            "value": torch.zeros(shape),
            "sums": torch.zeros(ensembles, 2 ** (depth - 1), features, bins + 1, 3),
        }
        for name, tensor in start.items():
            self.register_buffer(name, tensor.double())

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs (n, outputs) of all trees, the one that grows too."""
        scores = self.scores(features, self.feature.shape[0]).float()
        return torch.cat([torch.zeros_like(scores), scores], dim=1) if self.outputs == 2 else scores

    def scores(self, features: Tensor, trees: int) -> Tensor:
        """Return the sum (n, K) of the base and the first `trees` trees, float64."""
        if trees == 0:
            return self.base.expand(len(features), -1)
        value = self.value[:trees].flatten(0, 1)
        ends = self._nodes(features, slice(0, trees), self.depth)
        each = value.gather(1, ends.T).T  # (n, trees * K)
        return self.base + torch.unflatten(each, 1, (trees, -1)).sum(dim=1)

    def _nodes(self, features: Tensor, trees: slice, levels: int) -> Tensor:
        """Return the node (n, trees * K) that each row reaches in so many levels of these trees."""
        feature, threshold, missing_left = (
            one[trees].flatten(0, 1) for one in (self.feature, self.threshold, self.missing_left)
        )
        rows = features.double()
        # Of any number of rows when it is traced, too.
        node = torch.zeros_like(rows[:, :1], dtype=torch.long).expand(-1, len(feature))
        for _ in range(levels):
            split = feature.gather(1, node.T).T.long()
            value = rows.gather(1, split.clamp(min=0))
            missing = value.isnan() & (missing_left.gather(1, node.T).T > 0)
            left = (value < threshold.gather(1, node.T).T) | missing  # NaN is below nothing
            node = torch.where(split >= 0, 2 * node + 2 - left.long(), node)
        return node

    @torch.no_grad()
    def collect(self, features: Tensor, derivatives: Derivatives) -> None:
        """Put into `sums` those of these patients (n, F), divided by n, for the level that grows now."""
        _, tree, level = (int(number) for number in self.cursor)
        self.sums.zero_()
        if tree >= self.feature.shape[0]:
            return
        gradients, hessians = derivatives(self.scores(features, tree))
        nodes = self._nodes(features, slice(tree, tree + 1), level) - (2**level - 1)
        bins = self._bins(features)
        for ensemble, own in enumerate(nodes.T):
            each = torch.stack([gradients[:, ensemble], hessians[:, ensemble]], dim=1).double()
            # Each patient's numbers are multiples of the grid, so that their sum is exact in every order.
            rows = torch.cat([(each / GRID).round() * GRID, each.new_ones(len(each), 1)], dim=1)
            at_level = own >= 0
            self._add(self.sums[ensemble], own[at_level], bins[at_level], rows[at_level])
        self.sums /= len(features)

    @staticmethod
    def _add(sums: Tensor, nodes: Tensor, bins: Tensor, rows: Tensor) -> None:
        """Add rows (n, 3) to sums (M, F, B + 1, 3) at each one's node (n,) and bins (n, F)."""
        _, features, cells, _ = sums.shape
        place = (nodes[:, None] * features + torch.arange(features, device=nodes.device)) * cells + bins
        sums.view(-1, 3).index_add_(0, place.flatten(), rows.repeat_interleave(features, dim=0))

    def _bins(self, features: Tensor) -> Tensor:
        """Return each value's bin (n, F): the number of edges at or below it, the last for a missing one."""
        columns = features.double().T.contiguous()
        bins = torch.searchsorted(self.edges, columns, right=True)
        return torch.where(columns.isnan(), self.edges.shape[1] + 1, bins).T


def first_edges(length: int) -> Tensor:
    """Return the edges that every feature starts from: 0, and powers of two of both signs, then NO_EDGE."""
    side = (length - 1) // 2
    powers = next(
        exponents for step in (1, 2, 4, 8, 16) if len(exponents := range(step - 16, 16, step)) <= side
    )
    above = [2.0**power for power in powers]
    edges = [*(-edge for edge in reversed(above)), 0.0, *above]
    return torch.tensor([*edges, *[NO_EDGE] * (length - len(edges))], dtype=torch.float64)
