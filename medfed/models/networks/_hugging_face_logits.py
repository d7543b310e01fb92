"""An image classifier of transformers that takes medfed's images and returns only its logits."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn


@final
class HuggingFaceLogits(nn.Module):
    """Takes images (B, C, X, Y) and returns logits (B, K).

    The model sees them as it was pretrained, (B, C, rows, columns): a published model has learnt what is up
    and down in a photograph, and would lose much of it on a transposed one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image.transpose(-1, -2)).logits
        return logits
