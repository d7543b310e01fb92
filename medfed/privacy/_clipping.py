"""The parts of a Gaussian mechanism on whole updates: clipping, scaling and noise.

`client_dp` and `distributed_dp` compose from these.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medfed.privacy._noise import add_gaussian
from medfed.wire.weights import Weights, norm

# A clipped vector is shorter than its bound by at least this share, so that rounding it to float32, summing
# many and rounding the sum to the noise's grid cannot exceed the bound.
SLACK = 1e-5


def factor(length: float, clip: float) -> float:
    """Return the factor that clips a vector of this length to just below `clip`; 0 if it is not finite."""
    if not math.isfinite(length):
        return 0.0
    bound = clip * (1 - SLACK)
    return 1.0 if length <= bound else bound / length


def clipped(delta: Weights, clip: float) -> dict[str, Tensor]:
    """Return a difference of weights scaled to a norm over all its tensors of at most `clip`, float64."""
    scale = factor(norm(delta), clip)
    return {name: scaled(delta[name], scale) for name in delta}


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """Return the tensor times a number, float64; zeros for 0, even where it is not finite."""
    wide = tensor.double()
    return torch.zeros_like(wide) if scale == 0 else wide * scale


def noised(delta: Weights, deviation: float, sensitivity: float, like: Weights) -> dict[str, Tensor]:
    """Return a difference plus Gaussian noise of this deviation on every value, in the dtypes of `like`."""
    return {name: add_gaussian(delta[name], deviation, sensitivity).to(like[name].dtype) for name in delta}


def share(clip: float, noise_multiplier: float, answering: int) -> float:
    """Return the deviation of each site's noise such that any `answering` sites add the whole noise to a sum.

    If more answer, the sum has more noise than it needs; if fewer do, it must not be opened.
    """
    return noise_multiplier * clip / math.sqrt(answering)
