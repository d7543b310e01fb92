"""Calibration of predicted risks, their net benefit, and temperature scaling.

**Calibration** is the slope of a logistic regression of the outcome on logit(p) (1 is right; below 1 is
overconfident) and the intercept with that slope held at 1 (0 is right; above 0, the predicted risks are too
low on average).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from medfed.errors import DataError
from medfed.evaluation.classification import ONE_CLASS, check_binary, class_numbers
from medfed.evaluation.intervals import CONFIDENCE, Floats, Interval

# Probabilities are clipped to this distance from 0 and 1 before a logit is taken.
MIN_PROBABILITY = 1e-6


class Calibration(NamedTuple):
    """Slope and intercept of the outcome on logit(p), each with its Wald interval."""

    slope: Interval
    intercept: Interval


def _logit(p: Floats) -> Floats:
    held = np.clip(p, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return np.asarray(np.log(held / (1 - held)))


def _logistic(
    design: Floats, y: NDArray[np.bool_], offset: Floats, steps: int = 50
) -> tuple[Floats, Floats] | None:
    """Return maximum likelihood coefficients and their standard errors by Newton's method, or None without
    any."""
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
            return beta, np.sqrt(np.diag(np.linalg.inv(information)))
    return None


def calibration(probabilities: ArrayLike, targets: ArrayLike) -> Calibration:
    """Return the calibration slope, and the intercept with that slope held at 1."""
    p, y = check_binary(probabilities, targets)
    method = "Wald interval of a logistic regression on logit(p)"
    if y.all() or not y.any():
        nothing = Interval(None, None, None, len(p), method, ONE_CLASS)
        return Calibration(nothing, nothing)
    logit = _logit(p)
    ones, z = np.ones((len(p), 1)), float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    alike = bool(np.ptp(logit) == 0)
    reason = (
        "no slope: all probabilities are alike" if alike else "no finite value: the classes are separated"
    )
    separated = Interval(None, None, None, len(p), method, reason)
    found = []
    for design, offset in ((np.c_[ones, logit], np.zeros(len(p))), (ones, logit)):
        fit = _logistic(design, y, offset)
        if fit is None:
            found.append(separated)
        else:
            value, error = float(fit[0][-1]), float(fit[1][-1])
            found.append(Interval(value, value - z * error, value + z * error, len(p), method))
    return Calibration(*found)


def net_benefit(probabilities: ArrayLike, targets: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Return (thresholds, 2): the net benefit of following the model, and of treating everyone.

    Vickers and Elkin, Medical Decision Making 2006: true positives minus false positives, the latter
    weighted by the odds of the threshold at which a patient would accept treatment. Treating nobody has 0.

    Raises:
        DataError: there is no patient, or a threshold is not from 0 to below 1, where the odds are infinite.
    """
    p, y = check_binary(probabilities, targets)
    steps = np.asarray(thresholds, dtype=np.float64)
    if not len(p):
        raise DataError("net benefit of no patients; give at least one")
    if steps.ndim != 1 or not ((steps >= 0) & (steps < 1)).all():
        raise DataError("net benefit: thresholds must be a list of numbers from 0 to below 1")
    odds = steps / (1 - steps)
    called = p[None] >= steps[:, None]
    model = (called & y).mean(axis=1) - (called & ~y).mean(axis=1) * odds
    return np.stack([model, y.mean() - (1 - y.mean()) * odds], axis=1)


def temperature(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Return the temperature that makes validation patients most likely (Guo et al., ICML 2017).

    Args:
        probabilities: (patients, classes), or (patients,) of the one positive class.
        targets: class numbers.

    Raises:
        DataError: there is no patient, or a probability or a target is none.
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

    found = optimize.minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


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
