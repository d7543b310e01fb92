"""Gaussian noise for privacy, keyed by the operating system's generator: never seeded, never repeated.

torch's and numpy's generators are fast and predictable: whoever learns their state, or some of their output,
knows the noise and can subtract it. Here every bit comes from AES-256 in counter mode under a key of 32 bytes
from `os.urandom`, new for each call and stored nowhere. Distinguishing that stream from chance means breaking
AES. Linux's own generator is such a stream cipher too, but costs a system call per block and takes several
times as long.

Floating-point numbers have gaps, from which Mironov (On Significance of the Least Significant Bits for
Differential Privacy, CCS 2012) recovered noised values. There are two defences, both of which are taken.

- Each draw is the sum of n = 4 Gaussians over two, as in Opacus' secure mode, so that the search for the
  53-bit numbers behind it takes 2^(53 (n - 1)) = 2^159 tries (Holohan and Braghin, Secure Random Sampling in
  Differential Privacy, ESORICS 2021, arXiv:2107.10138).
- That leaves another trace: how many low bits of a sum are zero depends on the value that was noised (Haney,
  Desfontaines, Hartman, Shrestha, Hay, Precision-based Attacks and Interval Refining, 2022, arXiv:2207.13793,
  who break sums of several draws by it). So `add_gaussian` rounds value and noise to one grid, whose step is
  a power of two that does not depend on data, and adds them there without error, as OpenDP does with noise on
  Z 2^k (Canonne, Kamath, Steinke, The Discrete Gaussian for Differential Privacy, NeurIPS 2020,
  arXiv:2004.00010). Every neighbour's results are then the same numbers. They draw discrete Gaussians by
  exact arithmetic, which takes hours for a model; a continuous one rounded to s steps per deviation differs
  from it by e^(-2 pi^2 s^2) and a uniform number within half a step, far below the accountant's own error
  with the 2^10 steps that are required and the 2^36 that are usual.
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

from medfed.errors import PrivacyError

# Values drawn at a time, 32 bytes of the stream each: the buffers (1.3 MiB) stay in the cache, and torch does
# not split such a tensor over threads.
BLOCK = 1 << 14

# No value exceeds this many deviations: uniform numbers are at least 2^-53, so a radius is at most
# sqrt(106 ln 2) = 8.58, and a value at most sqrt(2) radii.
MAX_DEVIATIONS = 12.2


# The grid's steps per unit of the sensitivity or of the deviation, whichever is smaller; fewer where many
# contributions leave less room, but at least so many per sensitivity, and per deviation. Rounding then moves
# a sum of 10^8 numbers by at most sqrt(10^8) 2^-31 = 5e-6 of the sensitivity, part of `_clipping.SLACK`.
STEPS = 2.0**36
MIN_STEPS = 2.0**31
MIN_STEPS_PER_DEVIATION = 2.0**10


def add_gaussian(values: Tensor, deviation: float, sensitivity: float, contributions: int = 1) -> Tensor:
    """Return values plus independent Gaussian noise, float64, on a grid that does not depend on them.

    Args:
        values: a sum of clipped vectors.
        deviation: the noise's standard deviation.
        sensitivity: the length to which each of them was clipped.
        contributions: how many they are at most.

    Raises:
        PrivacyError: if the largest sum and a grid fine enough for the noise don't fit into floating point.
    """
    step = grid_step(deviation, sensitivity, contributions)
    drawn = gaussian(values.shape, deviation).to(values.device)
    # Both are whole numbers of steps below 2^53, so that neither the sum nor the product has an error.
    return values.double().div(step).round_().add_(drawn.div_(step).round_()).mul_(step)


def grid_step(deviation: float, sensitivity: float, contributions: int) -> float:
    """Return the grid's step, a power of two that follows from public settings alone.

    Raises:
        PrivacyError: as `add_gaussian`.
    """
    finest = min(deviation, sensitivity) / STEPS
    largest = contributions * sensitivity + MAX_DEVIATIONS * deviation
    step: float = 2.0 ** math.ceil(math.log2(max(finest, largest / 2**52)))
    if step * MIN_STEPS > sensitivity or step * MIN_STEPS_PER_DEVIATION > deviation:
        raise PrivacyError(
            f"noise of deviation {deviation:g} on sums of up to {contributions} contributions of length "
            f"{sensitivity:g} does not fit into 64-bit numbers; use fewer contributions, or another epsilon"
        )
    return step


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
