"""Compressions that encode each tensor by itself, and the quantisation that int8 and int4 share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from medfed.wire.compression._compression import (
    Compression,
    Parts,
    PositiveInt,
    State,
    check_finite,
    decode_each,
    flatten,
    tensor_shapes,
)
from medfed.wire.update import Encoded
from medfed.wire.weights import Weights


class Tensorwise(Compression, frozen=True):
    """A compression that encodes each tensor by itself, and keeps nothing from round to round."""

    # The groups of tensors that `encode_tensor` returns a part of.
    groups: ClassVar[tuple[str, ...]] = ("values",)

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in self.groups}
        for name, tensor in weights.items():
            for group, part in self.encode_tensor(name, flatten(name, tensor)).items():
                groups[group][name] = part
        return Encoded(groups, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        return decode_each(encoded, self.decode_tensor)

    def encode_tensor(self, name: str, values: Tensor) -> Mapping[str, Tensor]:
        """Return the parts of one tensor by group; `values` is flat, float32 and finite."""
        raise NotImplementedError

    def decode_tensor(self, parts: Parts) -> Tensor:
        """Return a tensor's values, flat and float32."""
        raise NotImplementedError


class Blockwise(Tensorwise, frozen=True):
    """Integers from -levels to levels with one scale (float32) per `block` values.

    The scale is the block's largest magnitude over `levels`, so an error is at most half a scale, and a large
    value in one block does not affect the others.
    """

    groups: ClassVar[tuple[str, ...]] = ("codes", "scales")
    levels: ClassVar[int]

    block: PositiveInt

    def encode_tensor(self, name: str, values: Tensor) -> Mapping[str, Tensor]:
        codes, scales = self._quantised(values)
        return {"codes": self.pack(codes), "scales": scales}

    def decode_tensor(self, parts: Parts) -> Tensor:
        codes = self.unpack(parts)
        scales = parts.read("scales", -(-parts.count // self.block), torch.float32)
        # In float64: a rounded scale could carry the largest code beyond float32's largest number.
        wide = check_finite(parts.name, scales).double().repeat_interleave(self.block)
        values = codes.double() * wide[: parts.count]
        largest = torch.finfo(torch.float32).max
        return values.clamp_(-largest, largest).float()

    def pack(self, codes: Tensor) -> Tensor:
        """Return the codes (int8) as they are sent."""
        return codes

    def unpack(self, parts: Parts) -> Tensor:
        """Return the codes (int8) of one tensor."""
        return parts.read("codes", parts.count, torch.int8)

    def _quantised(self, values: Tensor) -> tuple[Tensor, Tensor]:
        count = values.numel()
        if count == 0:
            return torch.zeros(0, dtype=torch.int8), torch.zeros(0)
        padded = torch.zeros(-(-count // self.block) * self.block, dtype=torch.float64)
        padded[:count] = values
        blocks = padded.view(-1, self.block)
        scales = (blocks.abs().amax(1) / self.levels).float()
        # Divided by the rounded scale, with which the hub multiplies. A scale that float32 rounds to 0 gives
        # zeros.
        divisor = torch.where(scales > 0, scales.double(), torch.inf)
        codes = (blocks / divisor[:, None]).round_().clamp_(-self.levels, self.levels)
        return codes.view(-1)[:count].to(torch.int8), scales
