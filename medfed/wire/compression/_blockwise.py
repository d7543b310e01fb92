"""Quantisation to integers with one scale per block, which int8 and int4 share."""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(values: Tensor, block: int, levels: int) -> tuple[Tensor, Tensor]:
    """Return codes (int8) from -levels to levels and each block's scale; a value is code * scale.

    The scale (float32) is the block's largest magnitude over `levels`, so an error is at most half a scale,
    and a large value in one block does not affect the others.
    """
    if values.numel() == 0:
        return torch.zeros(0, dtype=torch.int8), torch.zeros(0)
    padded = torch.zeros(-(-values.numel() // block) * block, dtype=torch.float64)
    padded[: values.numel()] = values
    blocks = padded.view(-1, block)
    scales = (blocks.abs().amax(1) / levels).float()
    # Divided by the rounded scale, with which the hub multiplies. A scale that float32 rounds to
    # 0 gives zeros.
    divisor = torch.where(scales > 0, scales.double(), torch.inf)
    codes = (blocks / divisor[:, None]).round_().clamp_(-levels, levels)
    return codes.view(-1)[: values.numel()].to(torch.int8), scales


def dequantise(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """Return the values (float32) of codes and scales."""
    # In float64: a rounded scale could carry the largest code beyond float32's largest number.
    values = codes.double() * scales.double().repeat_interleave(block)[: codes.numel()]
    largest = torch.finfo(torch.float32).max
    return values.clamp_(-largest, largest).float()
