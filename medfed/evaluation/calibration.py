"""Calibration of predicted risks, and temperature scaling.

**Calibration** is the slope of a logistic regression of the outcome on logit(p) (1 is right; below 1 is
overconfident) and the intercept with that slope held at 1 (0 is right; above 0, the predicted risks are too
low on average).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from medfed.errors import DataError
from medfed.evaluation.classification import ONE_CLASS, check_binary, class_numbers
from medfed.evaluation.intervals import Floats, Interval, wald

# Probabilities are clipped to this distance from 0 and 1 before a logit is taken.
MIN_PROBABILITY = 1e-6


class Calibration(NamedTuple):
    """Slope and intercept of the outcome on logit(p), each with its Wald interval."""

    slope: Interval
    intercept: Interval


def _logit(p: Floats) -> Floats:
    clipped = np.clip(p, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _logistic(
    design: Floats, y: NDArray[np.bool_], offset: Floats, steps: int = 50
) -> tuple[float, float] | None:
    """Return the last maximum likelihood coefficient and its standard error, or None if there is no maximum.

    Newton's method.
    """
    beta = np.zeros(design.shape[1])
    for _ in range(steps):
        risk = 1 / (1 + np.exp(-np.clip(design @ beta + offset, -35, 35)))
        information = design.T @ (design * (risk * (1 - risk))[:, None])
        if np.linalg.cond(information) > 1e12:
            return None
        move = np.linalg.solve(information, design.T @ (y - risk))
        beta = beta + move
        if not np.isfinite(beta).all() or np.abs(beta).max() > 1e3:
            return None
        if np.abs(move).max() < 1e-10:
            return float(beta[-1]), float(np.sqrt(np.diag(np.linalg.inv(information)))[-1])
    return None


def calibration(probabilities: ArrayLike, targets: ArrayLike) -> Calibration:
    """Return the calibration slope, and the intercept with that slope held at 1."""
    p, y = check_binary(probabilities, targets)
    method = "Wald interval of a logistic regression on logit(p)"
    undefined = Interval(None, None, None, len(p), method, ONE_CLASS)
    if y.all() or not y.any():
        return Calibration(undefined, undefined)
    logit, ones = _logit(p), np.ones((len(p), 1))
    alike = bool(np.ptp(logit) == 0)
    undefined = undefined._replace(
        note="no slope: all probabilities are alike"
        if alike
        else "no finite value: the classes are separated"
    )

    def fitted(design: Floats, offset: Floats) -> Interval:
        fit = _logistic(design, y, offset)
        return undefined if fit is None else wald(*fit, len(p), method)

    return Calibration(fitted(np.c_[ones, logit], np.zeros(len(p))), fitted(ones, logit))


def temperature(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Return the temperature that makes validation patients most likely (Guo et al., ICML 2017).

    Args:
        probabilities: (patients, classes), or (patients,) of the one positive class.
        targets: class numbers.

    Raises:
        DataError: there is no patient, or a probability or a target is invalid.
    """
    logits = _log_probabilities(probabilities)
    y = class_numbers(targets, logits.shape[1])
    if not len(y) or len(y) != len(logits):
        raise DataError(
            f"{len(logits)} patients' probabilities and {len(y)} targets; give at least one of each"
        )

    def surprise(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        peak = scaled.max(axis=1, keepdims=True)
        total = peak[:, 0] + np.log(np.exp(scaled - peak).sum(axis=1))
        return float((total - scaled[np.arange(len(y)), y]).mean())

    best = optimize.minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(best.x))


def rescaled(probabilities: ArrayLike, at_temperature: float) -> Floats:
    """Return probabilities at another temperature; above 1 they are less confident, and their order stays.

    Raises:
        DataError: the temperature is not above 0.
    """
    if not (np.isfinite(at_temperature) and at_temperature > 0):
        raise DataError(f"temperature {at_temperature:g}: expected a number above 0")
    scaled = _log_probabilities(probabilities) / at_temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    softened = np.exp(scaled)
    softened /= softened.sum(axis=1, keepdims=True)
    return softened[:, 1] if np.ndim(probabilities) == 1 else softened


def _log_probabilities(probabilities: ArrayLike) -> Floats:
    p = np.asarray(probabilities, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("probabilities must be between 0 and 1; apply softmax to the network's output first")
    if p.ndim == 1:
        p = np.stack([1 - p, p], axis=1)
    return np.asarray(np.log(np.clip(p, MIN_PROBABILITY, 1.0)))
