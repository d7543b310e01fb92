"""Gradient-boosted trees for tables: the hub grows them from sums over all hospitals.

Not trained by gradient descent: a site sums what the hub needs for one level of one tree
(`_tree_ensemble.py`), and the rule of the same name grows it (aggregation/boosted_trees.py, with sources).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from medfed.models.networks._network import Network

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Meta(ge=1)]


class BoostedTrees(Network, tag="boosted_trees", frozen=True):
    """Gradient-boosted trees for tables, for `rule: {kind: boosted_trees}`.

    trees: how many grow one after another; with three or more classes, so many for each class.  depth: the
    levels of splits of each.  bins: into how many each feature is cut at most.  reveal_sums: let the hub read
    each hospital's own sums, of nodes and bins with a single patient too, under a privacy mechanism that
    does not hide them; without it a study needs one that does, such as secure_sum.

    A round is one level; 4 rounds before the first tree choose the bins. Empty cells go the way that was
    learned for them (`data.missing: keep`).
    """

    serves = ("table", "survival")
    grows_from_sums: ClassVar[bool] = True
    takes_missing: ClassVar[bool] = True

    trees: Annotated[int, Meta(ge=1, le=10_000)] = 100
    depth: Annotated[int, Meta(ge=1, le=10)] = 3
    bins: Annotated[int, Meta(ge=8, le=256)] = 64
    reveal_sums: bool = False

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        from medfed.models.networks._tree_ensemble import TreeEnsemble

        return TreeEnsemble(inputs, outputs, self.trees, self.depth, self.bins)
