"""From an update back to the images or rows that made it.

Two attacks. Where the network's first layer is linear with a bias, one case's input is its weight's
gradient divided by its bias's, exactly (Phong, Aono, Hayashi, Wang, Moriai: Privacy-Preserving Deep
Learning via Additively Homomorphic Encryption, IEEE TIFS 2018, eprint 2017/715). For every other network,
the attack optimises inputs until their gradient points in the update's direction, with smoothness as a prior
(Geiping, Bauermeister, Dröge, Moeller: Inverting Gradients, NeurIPS 2020, arXiv:2003.14053: cosine distance,
total variation, Adam on the signs, three steps of decay). Departures: one start instead of
many, and inputs stay in the range that the attacker knows from the study's normalisation. The attacker is
given the true targets (class, label map, time), which a hub does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfed.wire.weights import Weights

# Geiping's schedule: the step size is divided by ten after these shares of all steps.
DECAY_AT = (3 / 8, 5 / 8, 7 / 8)


@dataclass(frozen=True)
class Prior:
    """What an attacker knows beforehand: the mean input (shape of one case) and the range of values."""

    mean: Tensor
    low: Tensor
    high: Tensor


def invert(
    gradient: Weights,
    gradient_of: Callable[[Tensor], Mapping[str, Tensor]],
    cases: int,
    prior: Prior,
    *,
    steps: int = 300,
    rate: float = 0.1,
    smooth: float = 1e-4,
    seed: int = 0,
) -> Tensor:
    """Return the inputs (cases, ...) whose gradient by `gradient_of` is closest in direction to `gradient`.

    `gradient_of` returns a loss's differentiable gradient by parameter name. `rate` is the first step size,
    in units of the range of values; `smooth` weighs total variation, which is not used for rows of a table,
    because their columns have no order.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((cases, *prior.mean.shape), generator=generator)
    span = prior.high - prior.low
    sought = (prior.mean + noise * span / 20).clamp(prior.low, prior.high).requires_grad_()
    optimiser = torch.optim.Adam([sought], lr=rate)
    best, least = sought.detach().clone(), float("inf")
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.1 ** sum(step >= share * steps for share in DECAY_AT)
        loss = _distance(gradient_of(sought), gradient)
        if smooth and sought.ndim > 2:
            loss = loss + smooth * _variation(sought / span)
        if loss.item() < least:
            best, least = sought.detach().clone(), loss.item()
        (slope,) = torch.autograd.grad(loss, sought)
        sought.grad = slope.sign() * span
        optimiser.step()
        with torch.no_grad():
            sought.clamp_(prior.low, prior.high)
    return best


def mismatch(
    guess: Tensor, gradient: Weights, gradient_of: Callable[[Tensor], Mapping[str, Tensor]]
) -> float:
    """Return the cosine distance of the gradient of `guess` from the given one; 0 is the same direction."""
    return _distance(gradient_of(guess), gradient).item()


def from_linear(gradient: Weights, weight: str, bias: str) -> Tensor:
    """Return the input (1, F) of a linear layer from its gradient on one case: dL/dW = dL/db x^T per row."""
    rows, offsets = gradient[weight].double(), gradient[bias].double()
    # The row with the largest divisor has the smallest rounding error.
    row = int(offsets.abs().argmax())
    return (rows[row] / offsets[row]).float()[None]


def first_linear(network: nn.Module) -> tuple[str, str] | None:
    """Return the weight's and bias's name of the first layer if it is linear with a bias, else None."""
    for name, layer in network.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                return f"{name}.weight", f"{name}.bias"
            return None
    return None


def recovered(guess: Tensor, true: Tensor, mean: Tensor) -> list[float]:
    """Return for each true input (cases, ...) how much of it came back, from 0 to 1.

    It is the recovered share of the input's squared distance from the mean of the hospital's other cases,
    1 - |guess - true|^2 / |mean - true|^2: 1 is the exact input, 0 no better than the mean, which needs no
    update. For an image, brightness, contrast and a blur over neighbours are free, because a viewer would
    adjust them: a lesion that is visible in noise of the wrong contrast counts as recovered. The order of
    cases in a batch leaves no trace in its gradient, so each case is compared with its best match.
    """
    from scipy.optimize import linear_sum_assignment

    flat, wanted = guess.flatten(1).double(), true.flatten(1).double()
    middle = mean.flatten().double()
    spread = (wanted - middle).square().sum(1).clamp(min=1e-12)
    right = 1 - torch.cdist(wanted, flat).square() / spread[:, None]
    if true.ndim > 3:
        for seen in (guess, _blurred(guess)):
            right = torch.maximum(right, _alike(wanted - middle, seen.flatten(1).double() - middle))
    rows, columns = linear_sum_assignment(-right.numpy())
    return [max(0.0, float(right[row, column])) for row, column in zip(rows, columns, strict=True)]


def _alike(wanted: Tensor, guess: Tensor) -> Tensor:
    """Return the squared correlation of each pair of rows, 0 if negative: the share a best fit explains."""
    one, two = (rows - rows.mean(1, keepdim=True) for rows in (wanted, guess))
    product = one @ two.T
    lengths = one.norm(dim=1)[:, None] * two.norm(dim=1)[None]
    correlation: Tensor = (product / lengths.clamp(min=1e-12)).clamp(min=0)
    return correlation.square()


def _blurred(images: Tensor) -> Tensor:
    pool = nn.functional.avg_pool3d if images.ndim == 5 else nn.functional.avg_pool2d
    return pool(images.float(), 3, stride=1, padding=1, count_include_pad=False)


def _distance(guess: Mapping[str, Tensor], gradient: Weights) -> Tensor:
    target = {name: tensor.detach().float() for name, tensor in gradient.items()}
    product = sum((guess[name] * target[name]).sum() for name in target)
    mine = sum(guess[name].square().sum() for name in target)
    theirs = sum(target[name].square().sum() for name in target)
    return 1 - product / ((mine * theirs).sqrt() + 1e-12)  # type: ignore[union-attr]


def _variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, over all axes of (B, C, ...)."""
    axes = range(2, images.ndim)
    return torch.stack([images.diff(dim=axis).abs().mean() for axis in axes]).sum()
