"""The mean of the models of a study's rounds, which the study ends with on a key (`train.average`).

It is of a number of last rounds, or a moving average over all (`ema`), whose weights sum to 1 from the first
round on: of decay d, after t rounds, the model of round s weighs d^(t-s) (1 - d) / (1 - d^t), as Adam's
corrected moments do (Kingma, Ba, ICLR 2015, arXiv:1412.6980).

Izmailov et al.: Averaging weights leads to wider optima and better generalization, UAI 2018,
arXiv:1803.05407.
Departure: the models are those that a hub merged, round by round, at whatever learning rate the schedule has.
"""

from __future__ import annotations

import torch

from medfed.aggregation._state import state_dtype
from medfed.study.averaging import Average, Ema, averages, first_averaged
from medfed.wire.weights import Weights

# The group of a hub's checkpoint that holds the mean so far.
AVERAGE = "average"


def averaged(
    merged: Weights, mean: Weights | None, *, round: int, rounds: int, average: Average
) -> tuple[Weights, Weights | None]:
    """Return the model of a round, and the mean so far of the merged models that `average` says.

    The model is the merged one, and of the last round that mean. `mean` is that of the rounds before, None
    before the first that counts.
    """
    count = round - first_averaged(average, rounds) + 1
    if not averages(average) or count < 1:
        return merged, None
    if count == 1:
        mean = {name: value.to(state_dtype(value.dtype), copy=True) for name, value in merged.items()}
    else:
        assert mean is not None, "a checkpoint inside the last rounds holds their mean"
        share = _share(average, count)
        mean = {name: _step(mean[name], value, share) for name, value in merged.items()}
    if round < rounds:
        return merged, mean
    return {name: mean[name].to(value.dtype) for name, value in merged.items()}, mean


def _share(average: Average, count: int) -> float:
    """Return how much the newest of `count` models weighs in their mean."""
    if isinstance(average, Ema):
        return (1 - average.decay) / (1 - average.decay**count)
    return 1 / count


def _step(mean: torch.Tensor, value: torch.Tensor, share: float) -> torch.Tensor:
    """Return the mean with a further value, which weighs `share` of it."""
    return mean + (value.to(mean.dtype) - mean) * share
