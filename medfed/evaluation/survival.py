"""Predicted risks against times that may be censored: Harrell's c-index and the Brier score at a time.

**C-index** (Harrell, JAMA 1982): of the pairs in which the earlier time is an event, the share in which
that patient had the higher risk; equal risks count half; equal times count only where exactly one is an
event, which then came first. **Brier score at a time** (Graf et al., Statistics in Medicine 1999): the
squared error of the predicted survival, weighted by the inverse probability of not being censored before,
which the Kaplan-Meier curve of the same patients' censoring gives.

Two models' c-indices are of the same patients and pairs, so their difference is tested with the jackknife
over patients, a one-shot estimate of the U-statistics' variance (Kang et al., Statistics in Medicine 2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medfed.errors import DataError
from medfed.evaluation.intervals import Floats, Interval, Resampling, Statistic, ratio


def check_survival(
    risks: ArrayLike, times: ArrayLike, events: ArrayLike
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return risks, times and events as arrays.

    Raises:
        DataError: they differ in length, a time is below zero, or an event is neither 0 nor 1.
    """
    risk, time = np.asarray(risks, float), np.asarray(times, float)
    if not np.isin(np.asarray(events), (0, 1)).all():
        raise DataError("events must be 0 (censored) or 1 (it happened)")
    event = np.asarray(events).astype(bool)
    if not (risk.shape == time.shape == event.shape and risk.ndim == 1):
        raise DataError(
            f"{risk.shape} risks, {time.shape} times and {event.shape} events; give one a patient"
        )
    if not (np.isfinite(risk).all() and np.isfinite(time).all() and (time >= 0).all()):
        raise DataError("risks must be finite numbers, and times not below zero")
    return risk, time, event


def c_index_of(risks: ArrayLike, times: ArrayLike, events: ArrayLike) -> Statistic:
    """Return the statistic 'share of usable pairs whose order the risk gets right'."""
    risk, time, event = check_survival(risks, times, events)
    usable = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    np.fill_diagonal(usable, val=False)
    right = usable * ((risk[:, None] > risk) + 0.5 * (risk[:, None] == risk))
    usable_pairs = usable.astype(np.float64)

    def statistic(counts: Floats) -> Floats:
        top = ((counts @ right) * counts).sum(axis=1)
        bottom = ((counts @ usable_pairs) * counts).sum(axis=1)
        return ratio(top, bottom)

    return statistic


def brier_terms(survival: ArrayLike, times: ArrayLike, events: ArrayLike, at: float) -> Floats:
    """Return each patient's part of the Brier score at a time, whose mean it is, with the censoring
    curve of all given.

    From the last follow-up on the parts are undefined (NaN): of nobody is it known that they lived longer.
    """
    predicted = np.asarray(survival, dtype=np.float64)
    _, time, event = check_survival(predicted, times, events)
    if not ((predicted >= 0) & (predicted <= 1)).all():
        raise DataError("predicted survival must be between 0 and 1")
    if not len(time) or at >= time.max():
        return np.full(len(time), np.nan)
    failed, alive = (time <= at) & event, time > at
    weights = np.zeros(len(time))
    weights[failed] = 1 / _uncensored(time, event, time[failed], before=True)
    weights[alive] = 1 / _uncensored(time, event, np.array([at]), before=False)[0]
    return np.asarray(weights * np.where(failed, predicted**2, (1 - predicted) ** 2))


def brier_of(survival: ArrayLike, times: ArrayLike, events: ArrayLike, at: float) -> Statistic:
    """Return the statistic 'Brier score at a time', see `brier_terms`; undefined (NaN) from
    the last follow-up on.
    """
    terms = brier_terms(survival, times, events, at)

    def statistic(counts: Floats) -> Floats:
        return ratio(counts @ terms, counts.sum(axis=1))

    return statistic


def integrated_terms(curves: Mapping[float, ArrayLike], times: ArrayLike, events: ArrayLike) -> Floats:
    """Return each patient's part of the integrated Brier score, the trapezoid over the times of
    two curves or more.
    """
    ats = np.array(sorted(curves))
    parts = np.stack([brier_terms(curves[at], times, events, at) for at in ats], axis=1)
    return np.asarray(np.trapezoid(parts, ats, axis=1) / (ats[-1] - ats[0]))


def c_index_difference(
    risks: ArrayLike, others: ArrayLike, times: ArrayLike, events: ArrayLike, resampling: Resampling
) -> tuple[Interval, float | None]:
    """Return one model's c-index minus another's with its bootstrap interval, and the jackknife's p value."""
    ours, theirs = (c_index_of(some, times, events) for some in (risks, others))

    def difference(counts: Floats) -> Floats:
        return np.asarray(ours(counts) - theirs(counts))

    n = len(np.asarray(times))
    interval = resampling.interval(difference, n)
    if interval.value is None or n < 2:
        return interval, None
    left_out = difference(1.0 - np.eye(n))
    if not np.isfinite(left_out).all():
        # Without one of the patients no usable pair is left.
        return interval, None
    spread = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    if spread == 0:
        return interval, 1.0 if interval.value == 0 else None
    return interval, float(2 * stats.norm.sf(abs(interval.value) / spread))


def baseline_hazard(risks: ArrayLike, times: ArrayLike, events: ArrayLike, at: ArrayLike) -> list[float]:
    """Return Breslow's cumulative baseline hazard at some times, of patients at log
    risks against one another.

    The chance that a patient of log risk r lives beyond t is exp(-H(t) exp(r)).
    """
    risk, time, event = check_survival(risks, times, events)
    relative = np.exp(risk)
    steps = np.unique(time[event])
    jumps = np.array([(event & (time == step)).sum() / relative[time >= step].sum() for step in steps])
    return [float(jumps[steps <= moment].sum()) for moment in np.atleast_1d(np.asarray(at, float))]


def survival_probability(hazard: float, risk: float) -> float:
    """Return the chance that a patient of a log risk lives beyond the time that a cumulative
    baseline hazard is of.
    """
    # Far beyond the training patients' risks exp overflows; nobody lives that long then.
    return math.exp(-min(hazard * math.exp(min(risk, 700.0)), 700.0))


def _uncensored(time: Floats, event: NDArray[np.bool_], at: Floats, before: bool) -> Floats:
    """Return the Kaplan-Meier probability of not yet being censored at (or just before) some times."""
    steps = np.unique(time[~event])
    # A failure at the time of a censoring came first, so it is no longer at risk of being censored.
    at_risk = np.array([((time > step) | ((time == step) & ~event)).sum() for step in steps])
    censored = np.array([((time == step) & ~event).sum() for step in steps])
    curve = np.r_[1.0, np.cumprod(1 - censored / at_risk)] if len(steps) else np.ones(1)
    place = np.searchsorted(steps, at, side="left" if before else "right")
    return np.asarray(np.maximum(curve[place], 1e-9))
