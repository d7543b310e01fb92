"""A MONAI vision transformer that returns only its logits."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn


@final
class ViTLogits(nn.Module):
    """Returns only the logits (B, K) of a transformer that also returns the states of its layers."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor
        logits, _ = self.vit(image)
        return logits
