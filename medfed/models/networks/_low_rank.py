"""A layer's low-rank adapter, as a parametrisation of its weight (`_adapters` says of which paper)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class LowRank(nn.Module):
    """Returns W + alpha / rank B A for a weight W; B (out, rank) starts at zero, A (rank, in) is drawn.

    A is drawn as nn.Linear draws weights, which is what the authors' code does: evenly within
    1 / sqrt(in). Only with `both` does it train.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, seed: int, *, both: bool) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand((rank, columns), generator=generator, device="cpu")
        if weight.is_meta:  # built to be counted only
            drawn = torch.empty_like(drawn, device="meta")
        self.a = nn.Parameter((drawn * 2 - 1) / columns**0.5, requires_grad=both)
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).view_as(weight)
