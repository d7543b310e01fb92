"""Gaussian noise for privacy, keyed by the operating system's generator: never seeded, never repeated.

torch's and numpy's generators are fast and predictable: whoever learns their state, or some of their output,
knows the noise and can subtract it. Here every bit comes from AES-256 in counter mode under a key of 32 bytes
from `os.urandom`, new for each call and stored nowhere. Distinguishing that stream from chance means breaking
AES. Linux's own generator is such a stream cipher too, but costs a system call per block and takes several
times as long.

Floating-point numbers have gaps, from which Mironov (CCS 2012) recovered noised values; therefore, as in
Opacus' secure mode, each value is the sum of four Gaussians over two, after which the
search for the bits behind it is infeasible (Holohan and Braghin, Secure Random Sampling in Differential
Privacy, ESORICS 2021, arXiv:2107.10138).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

# Values drawn at a time, 32 bytes of the stream each: the buffers (1.3 MiB) stay in the cache, and torch does
# not split such a tensor over threads.
BLOCK = 1 << 14

# No value exceeds this many deviations: uniform numbers are at least 2^-53, so a radius is at most
# sqrt(106 ln 2) = 8.58, and a value at most sqrt(2) radii.
MAX_DEVIATIONS = 12.2


def gaussian(shape: Sequence[int], deviation: float) -> Tensor:
    """Return independent Gaussian noise of mean 0 and this standard deviation, float64, on the CPU."""
    values = torch.empty(tuple(shape), dtype=torch.float64)
    flat, uniform = values.view(-1), Uniform()
    for start in range(0, flat.numel(), BLOCK):
        _four(uniform, flat[start : start + BLOCK], deviation / 2)
    return values


def seed() -> int:
    """Return 63 secret bits to seed what is not privacy noise: dropout, augmentation."""
    return secrets.randbits(63)


def poisson_sample(count: int, chance: float) -> list[int]:
    """Return which of `count` are drawn, each independently with this probability (Poisson sampling)."""
    if chance >= 1:
        return list(range(count))
    return torch.nonzero(Uniform().draw(count) <= chance).flatten().tolist()


class Uniform:
    """Uniform numbers from one key's stream: multiples of 2^-53 in (0, 1], so that logarithms are finite."""

    def __init__(self) -> None:
        self._cipher = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def draw(self, count: int) -> Tensor:
        """Return the next numbers of the stream, float64."""
        bits = np.frombuffer(self._cipher.update(bytes(8 * count)), np.uint64) >> np.uint64(11)
        return torch.from_numpy(bits.view(np.int64)).double().add_(1).mul_(2.0**-53)


def _four(uniform: Uniform, out: Tensor, scale: float) -> None:
    """Write the scaled sum of four standard Gaussians, each pair by Box and Muller (1958).

    A pair sums to radius (cos + sin)(angle) = sqrt(2) radius cos(angle - pi / 4). If the angle is uniform, so
    is the shifted one, and a single cosine suffices. The radius is sqrt(-2 log), times sqrt(2) it is
    sqrt(-4 log).
    """
    drawn = uniform.draw(4 * out.numel()).view(4, -1)
    lengths, angles = drawn[:2], drawn[2:]
    radii = lengths.log_().mul_(-4 * scale**2).sqrt_()
    turns = angles.mul_(2 * math.pi).cos_()
    torch.add(radii[0].mul_(turns[0]), radii[1].mul_(turns[1]), out=out)
