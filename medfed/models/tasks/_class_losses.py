"""The loss by class, from which the hub tells sites whose labels are noisy (aggregation/fednoro.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def class_losses(logits: Tensor, target: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    """Return by class the sum of the cross entropy where the target is that class, and how often
    it is: (2,) float64.

    Logits are (B, K, ...), the target (B, ...) of class numbers.
    """
    each = functional.cross_entropy(logits, target.long(), reduction="none").double()
    found = {}
    for number, name in enumerate(classes):
        here = target == number
        found[name] = torch.stack([each[here].sum(), here.sum().double()])
    return found
