"""Classification metrics over patients: discrimination, operating point, calibration and net benefit.

The input is one probability per patient and class, and one target per patient. Every summary is a `Statistic`
of `intervals`: a function of how often each patient was drawn, so its bootstrap is one matrix operation.

An undefined value is None with a reason, for example AUROC with one class or average precision without
positives (torchmetrics 1.9 returns 0.0 for both). Probabilities outside 0 to 1 are rejected: treating them as
logits as soon as one exceeds 1, as another library does, changes every score of the batch.

**Operating point.** The threshold is chosen on validation patients and then applied; it is never chosen on
the patients whose results are reported. **The AUROC's interval** is DeLong's (Biometrics 1988, in Sun and
Xu's form, IEEE SPL 2014) on the logit scale, which keeps it between 0 and 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medfed.errors import DataError
from medfed.evaluation.intervals import CONFIDENCE, Z_95, Floats, Interval, Statistic, mean_of, ratio, wilson

BINS = 10
ONE_CLASS = "one class only"


def check_binary(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return one class's probabilities and targets as arrays.

    Raises:
        DataError: the lengths differ, a probability is not between 0 and 1, or a target is not 0 or 1.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    if p.shape != y.shape or p.ndim != 1:
        raise DataError(f"{p.shape} probabilities for {y.shape} targets; give one of each per patient")
    if outside := int(np.count_nonzero(~((p >= 0) & (p <= 1)))):
        raise DataError(
            f"{outside} of {len(p)} probabilities are not between 0 and 1; apply softmax or sigmoid to the "
            "network's output before evaluating it"
        )
    if not np.isin(y, (0, 1)).all():
        raise DataError("targets must be 0 or 1")
    return p, y.astype(bool)


def class_numbers(targets: ArrayLike, classes: int) -> NDArray[np.intp]:
    """Return targets as class numbers.

    Raises:
        DataError: a target is not a whole number from 0 to `classes` - 1.
    """
    y = np.asarray(targets)
    if y.size and not np.isin(y, np.arange(classes)).all():
        raise DataError(f"targets must be whole numbers from 0 to {classes - 1}, one for each class")
    return y.astype(np.intp)


def auroc_of(p: Floats, y: NDArray[np.bool_]) -> Statistic:
    """Return the statistic 'area under the ROC curve', in which ties count half."""
    order = np.argsort(p, kind="stable")
    positive = y[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) > 0]) if len(p) else np.zeros(0, np.intp)

    def statistic(counts: Floats) -> Floats:
        drawn = counts[:, order]
        ups = np.add.reduceat(drawn * positive, starts, axis=1)
        downs = np.add.reduceat(drawn * (1 - positive), starts, axis=1)
        below = np.cumsum(downs, axis=1) - downs / 2
        return ratio((ups * below).sum(axis=1), ups.sum(axis=1) * downs.sum(axis=1))

    return statistic


def average_precision_of(p: Floats, y: NDArray[np.bool_]) -> Statistic:
    """Return the statistic 'average precision': precision per threshold, weighted by its gain in recall."""
    order = np.argsort(-p, kind="stable")
    positive = y[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) < 0]) if len(p) else np.zeros(0, np.intp)

    def statistic(counts: Floats) -> Floats:
        drawn = counts[:, order]
        ups = np.add.reduceat(drawn * positive, starts, axis=1)
        seen = np.cumsum(np.add.reduceat(drawn, starts, axis=1), axis=1)
        precision = np.divide(np.cumsum(ups, axis=1), seen, out=np.zeros_like(seen), where=seen > 0)
        return ratio((ups * precision).sum(axis=1), ups.sum(axis=1))

    return statistic


def ece_of(p: Floats, y: NDArray[np.bool_], bins: int = BINS) -> Statistic:
    """Return the statistic 'expected calibration error' over bins of equal width."""
    member = np.eye(bins)[np.minimum((p * bins).astype(int), bins - 1)]
    gaps = member * (y - p)[:, None]

    def statistic(counts: Floats) -> Floats:
        return ratio(np.abs(counts @ gaps).sum(axis=1), counts.sum(axis=1))

    return statistic


def brier_of(p: Floats, y: NDArray[np.bool_]) -> Statistic:
    """Return the Brier score as a statistic: the mean squared error of the probability."""
    return mean_of((p - y) ** 2)


def confusion_cells(p: Floats, y: NDArray[np.bool_], threshold: float) -> Floats:
    """Return 0/1 columns (patients, 4): true positive, false positive, false negative, true negative."""
    called = p >= threshold
    return np.stack([called & y, called & ~y, ~called & y, ~called & ~y], axis=1).astype(np.float64)


def f1_of(p: Floats, y: NDArray[np.bool_], threshold: float) -> Statistic:
    """Return the statistic 'harmonic mean of precision and sensitivity'."""
    cells = confusion_cells(p, y, threshold)

    def statistic(counts: Floats) -> Floats:
        tp, fp, fn, _ = (counts @ cells).T
        return ratio(2 * tp, 2 * tp + fp + fn)

    return statistic


def mcc_of(p: Floats, y: NDArray[np.bool_], threshold: float) -> Statistic:
    """Return Matthews' correlation coefficient as a statistic, undefined if a margin is zero."""
    cells = confusion_cells(p, y, threshold)

    def statistic(counts: Floats) -> Floats:
        tp, fp, fn, tn = (counts @ cells).T
        return ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))

    return statistic


def _delong(p: Floats, y: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return each positive's share of negatives below it, and each negative's share of positives above it."""
    ups, downs = p[y], p[~y]
    ranks = stats.rankdata(np.concatenate([ups, downs]))
    above = (ranks[: len(ups)] - stats.rankdata(ups)) / len(downs)
    below = 1.0 - (ranks[len(ups) :] - stats.rankdata(downs)) / len(ups)
    return above, below


def delong(probabilities: ArrayLike, targets: ArrayLike) -> Interval:
    """Return the AUROC with DeLong's interval on the logit scale."""
    p, y = check_binary(probabilities, targets)
    ups, downs = int(y.sum()), int((~y).sum())
    interval = Interval(None, None, None, len(p), "DeLong, logit scale")
    if not (ups and downs):
        return interval._replace(note=ONE_CLASS)
    above, below = _delong(p, y)
    value = float(above.mean())
    interval = interval._replace(value=value)
    if ups < 2 or downs < 2:
        return interval._replace(note="no interval: a single patient of one class")
    if value in (0.0, 1.0):
        # No pair is misranked, so the variance estimate is zero. min(ups, downs) disjoint pairs without an
        # error still give an exact bound (Clopper and Pearson).
        bound = ((1 - CONFIDENCE) / 2) ** (1 / min(ups, downs))
        low, high = (bound, 1.0) if value == 1.0 else (0.0, 1.0 - bound)
        method = "exact bound from disjoint pairs, since no pair is misranked"
        return interval._replace(low=low, high=high, method=method)
    variance = above.var(ddof=1) / ups + below.var(ddof=1) / downs
    if variance == 0.0:
        # The model gives every patient the same probability, so the sample says nothing about the variance.
        return interval._replace(note="no interval: every patient is ranked equally")
    middle, half = np.log(value / (1 - value)), Z_95 * np.sqrt(variance) / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-bound))) for bound in (middle - half, middle + half))
    return interval._replace(low=low, high=high)


def delong_test(first: ArrayLike, second: ArrayLike, targets: ArrayLike) -> tuple[Interval, float | None]:
    """Return the difference of two AUROCs on the same patients (first minus second), and its p value."""
    (p, y), (q, _) = check_binary(first, targets), check_binary(second, targets)
    interval = Interval(None, None, None, len(p), "paired DeLong")
    if min(int(y.sum()), int((~y).sum())) < 2:
        return interval._replace(note=ONE_CLASS), None
    (above, below), (other_above, other_below) = _delong(p, y), _delong(q, y)
    up, down = above - other_above, below - other_below
    value = float(up.mean())
    error = float(np.sqrt(up.var(ddof=1) / len(up) + down.var(ddof=1) / len(down)))
    if error == 0.0:
        return interval._replace(value=value, note="no interval: both rank every patient equally"), None
    low, high = max(-1.0, value - Z_95 * error), min(1.0, value + Z_95 * error)
    return interval._replace(value=value, low=low, high=high), float(2 * stats.norm.sf(abs(value) / error))


def operating_point(probabilities: ArrayLike, targets: ArrayLike) -> float | None:
    """Return the threshold with the largest Youden index, or None if only one class is present.

    The threshold lies midway between two observed probabilities, so rounding errors do not change any
    patient's prediction. It is 0, which calls everyone, where no threshold is better than that: the lowest
    probability would be a single patient's.
    """
    p, y = check_binary(probabilities, targets)
    if y.all() or not y.any():
        return None
    steps = np.unique(p)
    thresholds = np.r_[0.0, (steps[1:] + steps[:-1]) / 2]
    youden = [(p[y] >= threshold).mean() + (p[~y] < threshold).mean() for threshold in thresholds]
    return float(thresholds[int(np.argmax(youden))])


def shown_threshold(threshold: float) -> str:
    """Return an operating point as it may be shown, with two digits from the nearer of 0 and 1.

    More digits would tell the two validation patients between whom it lies.
    """
    if threshold <= 0.5:
        return f"{threshold:.2g}"
    return f"{1 - float(f'{1 - threshold:.2g}'):.10g}"


def proportion(part: int, whole: int, method: str, absent: str) -> Interval:
    """Return a proportion of patients with Wilson's interval; `absent` is the note if `whole` is 0."""
    if whole == 0:
        return Interval(None, None, None, 0, method, absent)
    low, high = wilson(part, whole)
    return Interval(part / whole, low, high, whole, method)
