"""Whole numbers and a scale a block, which int8 and int4 share."""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(values: Tensor, block: int, levels: int) -> tuple[Tensor, Tensor]:
    """Return codes from -levels to levels (int8) and each block's scale (float32): about code times scale.

    The scale is the block's largest magnitude over `levels`, so an error is at most half a scale, and a large
    value in one block costs the others nothing.
    """
    if values.numel() == 0:
        return torch.zeros(0, dtype=torch.int8), torch.zeros(0)
    padded = torch.zeros(-(-values.numel() // block) * block, dtype=torch.float64)
    padded[: values.numel()] = values
    blocks = padded.view(-1, block)
    scales = (blocks.abs().amax(1) / levels).float()
    # Divided by the rounded scale, which the hub multiplies by. A scale that float32 rounds to 0 leaves
    # zeros.
    divisor = torch.where(scales > 0, scales.double(), torch.inf)
    codes = (blocks / divisor[:, None]).round_().clamp_(-levels, levels)
    return codes.view(-1)[: values.numel()].to(torch.int8), scales


def restore(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """Return the values (float32) of codes and scales."""
    # In float64: a scale's rounding could carry the largest code past float32's largest number.
    found = codes.double() * scales.double().repeat_interleave(block)[: codes.numel()]
    largest = torch.finfo(torch.float32).max
    return found.clamp_(-largest, largest).float()
