"""The loss per class, by which the hub finds sites with noisy labels (aggregation/fednoro.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def class_losses(logits: Tensor, target: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    """Return each class's sum of cross entropy and number of examples (or voxels), as (2,) float64.

    Logits are (B, K, ...), the target (B, ...) of class numbers.
    """
    each = functional.cross_entropy(logits, target.long(), reduction="none").double()
    losses = {}
    for number, name in enumerate(classes):
        of_class = target == number
        losses[name] = torch.stack([each[of_class].sum(), of_class.sum().double()])
    return losses
