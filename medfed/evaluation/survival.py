"""Survival metrics for censored data: Harrell's c-index and the Brier score at a given time.

**C-index** (Harrell, JAMA 1982): among the pairs whose earlier time is an event, the fraction in which that
patient has the higher risk. Equal risks count half. Equal times count only if exactly one of them is an
event, which is then taken to be first. **Brier score at a time** (Graf et al., Statistics in Medicine 1999):
the squared error of the predicted survival, weighted by the inverse probability of censoring, which is
estimated from the Kaplan-Meier curve of censoring in the same patients.

Both models' c-indices are computed from the same patients and pairs. Their difference is therefore tested
with the jackknife over patients, a one-shot estimate of the U-statistics' variance (Kang et al., Statistics
in Medicine 2015).
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
        DataError: the lengths differ, a value is not finite, a time is negative, or an event is not 0 or 1.
    """
    risk, time = np.asarray(risks, float), np.asarray(times, float)
    if not np.isin(np.asarray(events), (0, 1)).all():
        raise DataError("events must be 0 (censored) or 1 (observed)")
    event = np.asarray(events).astype(bool)
    if not (risk.shape == time.shape == event.shape and risk.ndim == 1):
        raise DataError(
            f"{risk.shape} risks, {time.shape} times and {event.shape} events; give one of each per patient"
        )
    if not (np.isfinite(risk).all() and np.isfinite(time).all() and (time >= 0).all()):
        raise DataError("risks and times must be finite, and times must not be negative")
    return risk, time, event


def c_index_of(risks: ArrayLike, times: ArrayLike, events: ArrayLike) -> Statistic:
    """Return the c-index as a statistic: the fraction of usable pairs that the risks order correctly."""
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
    """Return each patient's contribution to the Brier score at a time; the score is their mean.

    The censoring curve is estimated from all the given patients. From the last follow-up time on, the
    contributions are undefined (NaN), because no patient is known to have survived longer.
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
    """Return the Brier score at a time as a statistic, NaN from the last follow-up on; see `brier_terms`."""
    terms = brier_terms(survival, times, events, at)

    def statistic(counts: Floats) -> Floats:
        return ratio(counts @ terms, counts.sum(axis=1))

    return statistic


def integrated_terms(curves: Mapping[float, ArrayLike], times: ArrayLike, events: ArrayLike) -> Floats:
    """Return each patient's contribution to the integrated Brier score, by the trapezoidal rule.

    `curves` maps at least two times to the predicted survival at that time.
    """
    ats = np.array(sorted(curves))
    parts = np.stack([brier_terms(curves[at], times, events, at) for at in ats], axis=1)
    return np.asarray(np.trapezoid(parts, ats, axis=1) / (ats[-1] - ats[0]))


def c_index_difference(
    risks: ArrayLike, others: ArrayLike, times: ArrayLike, events: ArrayLike, resampling: Resampling
) -> tuple[Interval, float | None]:
    """Return the difference of two c-indices with its bootstrap interval, and the jackknife p value."""
    ours, theirs = (c_index_of(some, times, events) for some in (risks, others))

    def difference(counts: Floats) -> Floats:
        return np.asarray(ours(counts) - theirs(counts))

    n = len(np.asarray(times))
    interval = resampling.interval(difference, n)
    if interval.value is None or n < 2:
        return interval, None
    left_out = difference(1.0 - np.eye(n))
    if not np.isfinite(left_out).all():
        # Leaving out one patient leaves no usable pair.
        return interval, None
    spread = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    if spread == 0:
        return interval, 1.0 if interval.value == 0 else None
    return interval, float(2 * stats.norm.sf(abs(interval.value) / spread))


def baseline_hazard(risks: ArrayLike, times: ArrayLike, events: ArrayLike, at: ArrayLike) -> list[float]:
    """Return Breslow's cumulative baseline hazard H at some times, given the patients' log risks.

    A patient with log risk r survives beyond t with probability exp(-H(t) exp(r)).
    """
    risk, time, event = check_survival(risks, times, events)
    relative = np.exp(risk)
    steps = np.unique(time[event])
    jumps = np.array([(event & (time == step)).sum() / relative[time >= step].sum() for step in steps])
    return [float(jumps[steps <= moment].sum()) for moment in np.atleast_1d(np.asarray(at, float))]


def survival_probability(hazard: float, risk: float) -> float:
    """Return the survival probability of a patient with a log risk, given the cumulative baseline hazard."""
    # Clipping keeps exp from overflowing far outside the training patients' risks; survival is then about 0.
    return math.exp(-min(hazard * math.exp(min(risk, 700.0)), 700.0))


def _uncensored(time: Floats, event: NDArray[np.bool_], at: Floats, before: bool) -> Floats:
    """Return the Kaplan-Meier probability of being uncensored at (or just before) some times."""
    steps = np.unique(time[~event])
    # If an event and a censoring share a time, the event came first: that patient is no longer at risk.
    at_risk = np.array([((time > step) | ((time == step) & ~event)).sum() for step in steps])
    censored = np.array([((time == step) & ~event).sum() for step in steps])
    curve = np.r_[1.0, np.cumprod(1 - censored / at_risk)] if len(steps) else np.ones(1)
    index = np.searchsorted(steps, at, side="left" if before else "right")
    return np.asarray(np.maximum(curve[index], 1e-9))
