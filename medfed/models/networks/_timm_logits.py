"""An image classifier of timm that takes medfed's images."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn


@final
class TimmLogits(nn.Module):
    """Takes images (B, C, X, Y) and returns logits (B, K).

    The model sees them as it was pretrained, (B, C, rows, columns).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image.transpose(-1, -2))
        return logits
