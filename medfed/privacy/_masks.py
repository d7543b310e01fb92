"""Fixed-point numbers modulo 2^32 or 2^64, and the key streams that mask them; all sums are exact.

A number v becomes rint(v * scale) modulo 2^bits. Sums modulo 2^bits are exact in any order, so masks that
cancel leave nothing, and each value of the decoded sum differs from the true one by at most half a step per
site, 0.5 / scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from medfed.errors import UpdateError

Bits = Literal[32, 64]

# Numbers that are encoded, masked or unmasked at once. Each buffer takes 512 KiB: small enough for the cache,
# and so large that sites in threads of one process do not spend their time waiting for the interpreter.
_BLOCK = 1 << 16

# Headroom for rounding in a sum: 2^11 steps at 32 bits, half a step per term.
_ROUNDING = 1 + 2.0**-20


@dataclass(frozen=True)
class FixedPoint:
    """An integer encoding of numbers up to `limit` in size, so that `terms` of them add without overflow."""

    bits: Bits
    limit: float
    terms: int
    steps: float | None = None

    @property
    def scale(self) -> float:
        """Steps per unit: `steps`, or the largest power of two that keeps the sum below 2^(bits - 1)."""
        return self.steps or 2.0 ** math.floor(
            math.log2(2.0 ** (self.bits - 1) / (self.terms * self.limit * _ROUNDING))
        )

    @property
    def dtype(self) -> torch.dtype:
        """The signed dtype in which they travel, with the same bits: torch has no unsigned arithmetic."""
        return torch.int32 if self.bits == 32 else torch.int64

    @property
    def unsigned(self) -> Any:
        """Numpy's unsigned integer of the same bits, in which they are added and masked."""
        return np.uint32 if self.bits == 32 else np.uint64


class Stream:
    """One key's stream of AES-256 in counter mode, added to or subtracted from successive integers.

    Use each key for one stream only: the counter begins at 0, so a key must never mask two different things.
    """

    def __init__(self, key: bytes, sign: int) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._sign = sign

    def apply(self, total: np.ndarray, scratch: Scratch) -> None:
        """Add the next part of the stream to the integers, or subtract it, in place and modulo their size."""
        size = total.nbytes
        self._cipher.update_into(scratch.zeros[:size], scratch.out)
        drawn = scratch.out_array[:size].view(total.dtype)
        if self._sign > 0:
            np.add(total, drawn, out=total)
        else:
            np.subtract(total, drawn, out=total)


class Scratch:
    """Buffers that are reused for every block of every tensor, so that they stay in the processor's cache."""

    def __init__(self) -> None:
        self.zeros = memoryview(bytes(_BLOCK * 8))
        # The library requires scratch for one AES block beyond what is written.
        whole = bytearray(_BLOCK * 8 + 15)
        self.out, self.out_array = memoryview(whole), np.frombuffer(whole, np.uint8)
        self.values, self.integers = np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.int64)


def masked(
    values: Tensor | tuple[Tensor, Tensor],
    point: FixedPoint,
    factor: float,
    streams: Sequence[Stream],
    scratch: Scratch,
) -> tuple[Tensor, float]:
    """Return values times a factor as masked integers (flat), and the size of the largest value.

    A pair of tensors stands for its difference, taken in float64. Each block goes through all
    streams before the next.
    """
    parts = [_flat(tensor) for tensor in (values if isinstance(values, tuple) else (values,))]
    whole = np.empty(parts[0].size, point.unsigned)
    largest = 0.0
    for first in range(0, whole.size, _BLOCK):
        span = slice(first, min(first + _BLOCK, whole.size))
        block, integers = scratch.values[: span.stop - first], scratch.integers[: span.stop - first]
        if len(parts) == 2:
            np.subtract(parts[0][span], parts[1][span], out=block, dtype=np.float64)
        else:
            np.copyto(block, parts[0][span])
        # A value that is not finite counts as the largest of all; comparisons with NaN are false.
        low, high = float(block.min()), float(block.max())
        largest = max(largest, high, -low) if low <= high else float("inf")
        if largest > point.limit:
            break
        np.rint(np.multiply(block, factor * point.scale, out=block), out=block)
        np.copyto(integers, block, casting="unsafe")
        np.copyto(whole[span], integers, casting="unsafe")  # modulo 2^bits
        for stream in streams:
            stream.apply(whole[span], scratch)
    return torch.from_numpy(whole).view(point.dtype), largest


class MaskedSum:
    """A running sum of masked integers modulo 2^bits: exact in any order, so no update needs to be kept."""

    def __init__(self) -> None:
        self.sites: list[str] = []
        self.numbers: dict[str, Tensor] = {}

    def add(self, site: str, numbers: Mapping[str, Tensor]) -> None:
        """Add a site's masked integers, each tensor to the one of its name.

        Raises:
            UpdateError: if the site is in the sum already.
        """
        if site in self.sites:
            raise UpdateError(f"site '{site}': its update is in the sum already; a second one is not added")
        self.sites.append(site)
        for name, tensor in numbers.items():
            total = self.numbers.get(name)
            if total is None:
                self.numbers[name] = tensor.clone()  # in one process the tensor may still be the site's
            else:
                summands = _unsigned(total), _unsigned(tensor)
                np.add(*summands, out=summands[0])


def unmasked(
    total: Tensor, point: FixedPoint, factor: float, streams: Sequence[Stream], scratch: Scratch
) -> Tensor:
    """Return a sum of masked integers, unmasked, decoded and times a factor, in float64."""
    integers = _unsigned(total)
    result = torch.empty(total.shape, dtype=torch.float64)
    flat = result.view(-1).numpy()
    signed = np.int32 if point.bits == 32 else np.int64
    for first in range(0, flat.size, _BLOCK):
        span = slice(first, min(first + _BLOCK, flat.size))
        block = integers[span].copy()
        for stream in streams:
            stream.apply(block, scratch)
        np.multiply(block.view(signed), factor / point.scale, out=flat[span])
    return result


def _unsigned(tensor: Tensor) -> np.ndarray:
    """Return the same memory as unsigned integers, flat: only they wrap around in numpy by definition."""
    return tensor.reshape(-1).numpy().view(np.uint32 if tensor.dtype == torch.int32 else np.uint64)


def _flat(tensor: Tensor) -> np.ndarray:
    # numpy has no bfloat16.
    known = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()
    return known.detach().reshape(-1).numpy()
