"""The mean of the models of a study's last rounds, which the study ends with on a key (`train.average`).

Izmailov et al.: Averaging weights leads to wider optima and better generalization, UAI 2018,
arXiv:1803.05407.
Departure: the models are those that a hub merged, round by round, at whatever learning rate the schedule has.
"""

from __future__ import annotations

import torch

from medfed.aggregation._state import state_dtype
from medfed.wire.weights import Weights

# The group of a hub's checkpoint that holds the mean so far.
AVERAGE = "average"


def averaged(
    merged: Weights, mean: Weights | None, *, round: int, rounds: int, average: int
) -> tuple[Weights, Weights | None]:
    """Return the model of a round, and the mean of the merged models of the last `average` rounds so far.

    The model is the merged one, and of the last round that mean. `mean` is that of the rounds before, None
    before the first that counts.
    """
    count = round - (rounds - average)
    if average < 2 or count < 1:
        return merged, None
    if count == 1:
        mean = {name: value.to(state_dtype(value.dtype), copy=True) for name, value in merged.items()}
    else:
        assert mean is not None, "a checkpoint inside the last rounds holds their mean"
        mean = {name: _step(mean[name], value, count) for name, value in merged.items()}
    if round < rounds:
        return merged, mean
    return {name: mean[name].to(value.dtype) for name, value in merged.items()}, mean


def _step(mean: torch.Tensor, value: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mean of `count` values, of which all but the last are in `mean`."""
    return mean + (value.to(mean.dtype) - mean) / count
