"""A classifier of images that also sees columns of a table: one wrapper around every network of the registry.

The image's features, as the network gives them to its last layer, stand beside the output of a small network
over the columns; a new last layer, `head`, learns from both: joint fusion by concatenation (Huang, Pareek,
Seyyedi, Banerjee, Lungren: Fusion of medical imaging and electronic health records using deep learning, npj
Digital Medicine 2020, doi:10.1038/s41746-020-00341-z).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from medfed.errors import StudyError
from medfed.models.networks._network import Network
from medfed.registry import kind_of

# The path of the wrapper's last layer, whatever that of the network is called.
HEAD = "head"


@final
class ImageAndTable(nn.Module):
    """Takes images (B, C, X, Y, Z) or (B, C, X, Y) and columns (B, F) float32, and returns logits (B, K)."""

    def __init__(self, image: nn.Module, table: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.image = image
        self.table = table
        self.head = head

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        features = torch.cat([self.image(image), self.table(tabular)], dim=1)
        logits: Tensor = self.head(features)
        return logits


def with_columns(
    network: nn.Module, record: Network, columns: int, hidden: Sequence[int], outputs: int
) -> ImageAndTable:
    """Return a network of images that also learns from `columns` numbers of a table.

    Args:
        network: what `record` built; its last layer is replaced.
        record: names that layer (`head`).
        columns: the numbers per case.
        hidden: the widths of the network over them; none gives the columns to the head as they are.
        outputs: of the new last layer.

    Raises:
        StudyError: if the network's last layer is not a linear one, so that it has no features to add to.
    """
    layer = network.get_submodule(record.head) if record.head else None
    if not isinstance(layer, nn.Linear):
        raise StudyError(
            f"data.table: network '{kind_of(record)}' has no linear last layer, before which the columns "
            "of a "
            "table could stand beside the image's features; take another network, such as resnet"
        )
    network.set_submodule(record.head, nn.Identity())
    widths = (columns, *hidden)
    layers: list[nn.Module] = []
    for inputs, width in pairwise(widths):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
    head = nn.Linear(layer.in_features + widths[-1], outputs)
    return ImageAndTable(network, nn.Sequential(*layers), head)
