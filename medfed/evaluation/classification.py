"""Patients' probabilities become numbers: discrimination, an operating point, calibration, net benefit.

One probability a patient and class, one target a patient. Every summary is a `Statistic` of `intervals`: it
takes counts of how often each patient was drawn, so that its bootstrap is one matrix operation.

What is undefined is None with a reason: an AUROC of one class (torchmetrics 1.9 says 0.0), an average
precision without positives (also 0.0). Probabilities outside 0 to 1 are refused: guessing that they are
logits, as a peer does when a single one exceeds 1, changes every score of the batch.

**Operating point.** The threshold is fixed on validation patients and then applied; it is never chosen on
the patients who are reported. **Calibration**: the slope of a logistic regression of the outcome on
logit(p) (1 is right; below 1 is overconfident), the intercept with that slope held at 1 (0 is right; above
0 is too low a risk on average), and the expected calibration error over ten bins of equal width. **AUROC's
interval** is DeLong's (Biometrics 1988, in Sun and Xu's form, IEEE SPL 2014) on the logit scale, which
keeps it inside 0 to 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from medfed.errors import DataError
from medfed.evaluation._metric import Metric
from medfed.evaluation.intervals import (
    CONFIDENCE,
    DRAWS,
    Floats,
    Interval,
    Statistic,
    bootstrap,
    mean_of,
    wilson,
)

METRICS = {
    "auroc": Metric("AUROC", says="chance that a patient with the disease ranks above one without"),
    "auprc": Metric("Average precision", says="area under precision and recall"),
    "sensitivity": Metric("Sensitivity", says="at the operating point fixed on validation patients"),
    "specificity": Metric("Specificity", says="at the operating point fixed on validation patients"),
    "ppv": Metric("Positive predictive value", says="at the operating point, at this prevalence"),
    "npv": Metric("Negative predictive value", says="at the operating point, at this prevalence"),
    "f1": Metric("F1"),
    "mcc": Metric("Matthews correlation", lowest=-1.0),
    "accuracy": Metric("Accuracy"),
    "balanced_accuracy": Metric("Balanced accuracy"),
    "brier": Metric("Brier score", better="lower", says="mean squared error of the probability"),
    "ece": Metric("Calibration error", better="lower", says="expected, ten bins of equal width"),
    "calibration_slope": Metric(
        "Calibration slope", "", "one", None, None, "1 is right, below is overconfident"
    ),
    "calibration_intercept": Metric("Calibration intercept", "", "zero", None, None, "0 is right"),
    "prevalence": Metric("Prevalence", better="none"),
    "temperature": Metric("Temperature", "", "one", None, None, "above 1 the model was overconfident"),
}

# Probabilities are held this far from 0 and 1 before a logit is taken.
SMALLEST_PROBABILITY = 1e-6
BINS = 10
ONE_CLASS = "one class only"


def checked(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return one class's probabilities and targets as arrays.

    Raises:
        DataError: they differ in length, or hold something that is no probability or no target.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    if p.shape != y.shape or p.ndim != 1:
        raise DataError(f"{p.shape} probabilities for {y.shape} targets; give one of each a patient")
    if not ((p >= 0) & (p <= 1)).all():
        outside = int(np.count_nonzero(~((p >= 0) & (p <= 1))))
        raise DataError(
            f"{outside} of {len(p)} probabilities are not between 0 and 1; apply softmax or sigmoid to the "
            "network's output before it is evaluated"
        )
    if not np.isin(y, (0, 1)).all():
        raise DataError("targets must be 0 or 1")
    return p, y.astype(bool)


def class_numbers(targets: ArrayLike, classes: int) -> NDArray[np.intp]:
    """Return targets as class numbers.

    Raises:
        DataError: a target is no whole number from 0 to `classes` - 1.
    """
    y = np.asarray(targets)
    if y.size and not np.isin(y, np.arange(classes)).all():
        raise DataError(f"targets must be whole numbers from 0 to {classes - 1}, one for each class")
    return y.astype(np.intp)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom > 0)


def auroc_of(p: Floats, y: NDArray[np.bool_]) -> Statistic:
    """Return the statistic 'area under the ROC curve', ties counting half."""
    order = np.argsort(p, kind="stable")
    positive = y[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) > 0]) if len(p) else np.zeros(0, np.intp)

    def statistic(counts: Floats) -> Floats:
        drawn = counts[:, order]
        ups = np.add.reduceat(drawn * positive, starts, axis=1)
        downs = np.add.reduceat(drawn * (1 - positive), starts, axis=1)
        below = np.cumsum(downs, axis=1) - downs / 2
        return _ratio((ups * below).sum(axis=1), ups.sum(axis=1) * downs.sum(axis=1))

    return statistic


def average_precision_of(p: Floats, y: NDArray[np.bool_]) -> Statistic:
    """Return the statistic 'average precision': precision at each threshold, weighted by the recall it
    adds."""
    order = np.argsort(-p, kind="stable")
    positive = y[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) < 0]) if len(p) else np.zeros(0, np.intp)

    def statistic(counts: Floats) -> Floats:
        drawn = counts[:, order]
        ups = np.add.reduceat(drawn * positive, starts, axis=1)
        seen = np.cumsum(np.add.reduceat(drawn, starts, axis=1), axis=1)
        precision = np.divide(np.cumsum(ups, axis=1), seen, out=np.zeros_like(seen), where=seen > 0)
        return _ratio((ups * precision).sum(axis=1), ups.sum(axis=1))

    return statistic


def ece_of(p: Floats, y: NDArray[np.bool_], bins: int = BINS) -> Statistic:
    """Return the statistic 'expected calibration error': mean distance of risk and outcome over equal
    bins."""
    member = np.eye(bins)[np.minimum((p * bins).astype(int), bins - 1)]
    gaps = member * (y - p)[:, None]

    def statistic(counts: Floats) -> Floats:
        return _ratio(np.abs(counts @ gaps).sum(axis=1), counts.sum(axis=1))

    return statistic


def brier_of(p: Floats, y: NDArray[np.bool_]) -> Statistic:
    """Return the statistic 'mean squared error of the probability'."""
    return mean_of((p - y) ** 2)


def _cells(p: Floats, y: NDArray[np.bool_], threshold: float) -> Floats:
    called = p >= threshold
    return np.stack([called & y, called & ~y, ~called & y, ~called & ~y], axis=1).astype(np.float64)


def f1_of(p: Floats, y: NDArray[np.bool_], threshold: float) -> Statistic:
    """Return the statistic 'harmonic mean of precision and sensitivity'."""
    cells = _cells(p, y, threshold)

    def statistic(counts: Floats) -> Floats:
        tp, fp, fn, _ = (counts @ cells).T
        return _ratio(2 * tp, 2 * tp + fp + fn)

    return statistic


def mcc_of(p: Floats, y: NDArray[np.bool_], threshold: float) -> Statistic:
    """Return the statistic 'correlation of call and outcome', undefined where either is constant."""
    cells = _cells(p, y, threshold)

    def statistic(counts: Floats) -> Floats:
        tp, fp, fn, tn = (counts @ cells).T
        return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))

    return statistic


def _midranks(values: Floats) -> Floats:
    return np.asarray(stats.rankdata(values, method="average"), dtype=np.float64)


def _delong(p: Floats, y: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return each positive's and each negative's placement: the shares of the other class ranked below,
    above."""
    ups, downs = p[y], p[~y]
    everyone = _midranks(np.concatenate([ups, downs]))
    above = (everyone[: len(ups)] - _midranks(ups)) / len(downs)
    below = 1.0 - (everyone[len(ups) :] - _midranks(downs)) / len(ups)
    return above, below


def delong(probabilities: ArrayLike, targets: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return the AUROC with DeLong's interval on the logit scale."""
    p, y = checked(probabilities, targets)
    method = "DeLong, logit scale"
    ups, downs = int(y.sum()), int((~y).sum())
    if not (ups and downs):
        return Interval(None, None, None, len(p), method, ONE_CLASS)
    above, below = _delong(p, y)
    value = float(above.mean())
    if ups < 2 or downs < 2:
        return Interval(value, None, None, len(p), method, "no interval: a single patient of one class")
    if value in (0.0, 1.0):
        # Nobody is ranked wrongly, so no variance is seen. What min(ups, downs) disjoint pairs without an
        # error exclude is a bound that holds all the same (Clopper and Pearson).
        bound = ((1 - confidence) / 2) ** (1 / min(ups, downs))
        low, high = (bound, 1.0) if value == 1.0 else (0.0, 1.0 - bound)
        return Interval(
            value, low, high, len(p), "exact bound from disjoint pairs, since no pair is ranked wrongly"
        )
    variance = above.var(ddof=1) / ups + below.var(ddof=1) / downs
    if variance == 0.0:
        # A model that gives everybody the same probability: no pair is ranked, and no sample says how
        # sure that is.
        note = "no interval: every patient is ranked alike"
        return Interval(value, None, None, len(p), method, note)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    middle, half = np.log(value / (1 - value)), z * np.sqrt(variance) / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-bound))) for bound in (middle - half, middle + half))
    return Interval(value, low, high, len(p), method)


def delong_test(first: ArrayLike, second: ArrayLike, targets: ArrayLike) -> tuple[Interval, float | None]:
    """Return the difference of two AUROCs on the same patients (first minus second), and its p value."""
    (p, y), (q, _) = checked(first, targets), checked(second, targets)
    method = "paired DeLong"
    if min(int(y.sum()), int((~y).sum())) < 2:
        return Interval(None, None, None, len(p), method, ONE_CLASS), None
    (above, below), (other_above, other_below) = _delong(p, y), _delong(q, y)
    up, down = above - other_above, below - other_below
    value = float(up.mean())
    error = float(np.sqrt(up.var(ddof=1) / len(up) + down.var(ddof=1) / len(down)))
    if error == 0.0:
        return Interval(value, None, None, len(p), method, "no interval: both rank every patient alike"), None
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    interval = Interval(value, max(-1.0, value - z * error), min(1.0, value + z * error), len(p), method)
    return interval, float(2 * stats.norm.sf(abs(value) / error))


def operating_point(
    probabilities: ArrayLike, targets: ArrayLike, sensitivity: float | None = None
) -> float | None:
    """Return the threshold of the largest Youden index, or the largest one that reaches a sensitivity.

    It lies midway between two observed probabilities, so that a rounding error does not move a patient
    across. None where only one class is present.
    """
    p, y = checked(probabilities, targets)
    if y.all() or not y.any():
        return None
    steps = np.unique(p)
    thresholds = np.r_[steps[0], (steps[1:] + steps[:-1]) / 2]
    caught = np.array([(p[y] >= threshold).mean() for threshold in thresholds])
    if sensitivity is not None:
        return float(thresholds[np.flatnonzero(caught >= sensitivity)[-1]])
    spared = np.array([(p[~y] < threshold).mean() for threshold in thresholds])
    return float(thresholds[int(np.argmax(caught + spared))])


class Calibration(NamedTuple):
    """Slope and intercept of the outcome on logit(p), each with its Wald interval."""

    slope: Interval
    intercept: Interval


def _logit(p: Floats) -> Floats:
    held = np.clip(p, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
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
    p, y = checked(probabilities, targets)
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
    p, y = checked(probabilities, targets)
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
    return np.asarray(np.log(np.clip(p, SMALLEST_PROBABILITY, 1.0)))


class Found(NamedTuple):
    """One metric of one class (None: of all classes together) with its interval."""

    structure: str | None
    metric: str
    interval: Interval


def measure_class(
    name: str | None,
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    threshold: float,
    fixed: str,
    seed: int,
    strata: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
) -> list[Found]:
    """Return every metric of one class against the others.

    Args:
        name: of the class, or None where there is only one question.
        probabilities: of that class, one a patient.
        targets: 1 where the patient is of that class.
        threshold: the operating point.
        fixed: where the threshold was fixed, for the method ("Youden index on 40 validation patients").
        seed: of the bootstrap.
        strata: each patient's hospital.
        draws: of the bootstrap.
    """
    p, y = checked(probabilities, targets)
    n = len(p)

    def boot(statistic: Statistic, note: str | None = None) -> Interval:
        interval = bootstrap(statistic, n, seed=seed, strata=strata, draws=draws)
        return interval._replace(note=note) if interval.value is None and note and n else interval

    found = {"auroc": auroc(p, y, seed=seed, strata=strata, draws=draws)}
    no_positive = "no patient of this class" if not y.any() else None
    found["auprc"] = boot(average_precision_of(p, y), no_positive)
    if found["auprc"].value is not None:
        prevalence = f"by chance it would be the prevalence, {y.mean():.2f}"
        found["auprc"] = found["auprc"]._replace(note=found["auprc"].note or prevalence)
    tp, fp, fn, tn = (int(cell) for cell in _cells(p, y, threshold).sum(axis=0))
    at = f"Wilson; threshold {threshold:.3g}, {fixed}"
    for metric, part, whole, absent in (
        ("sensitivity", tp, tp + fn, "no patient of this class"),
        ("specificity", tn, tn + fp, "every patient is of this class"),
        ("ppv", tp, tp + fp, "nobody above the threshold"),
        ("npv", tn, tn + fn, "nobody below the threshold"),
        ("accuracy", tp + tn, n, "no patients"),
        ("prevalence", tp + fn, n, "no patients"),
    ):
        found[metric] = proportion(part, whole, at if metric != "prevalence" else "Wilson", absent)
    found["f1"] = boot(f1_of(p, y, threshold), "neither called nor present")
    found["mcc"] = boot(mcc_of(p, y, threshold), "calls or outcomes are all alike")
    found["brier"] = boot(brier_of(p, y))
    found["ece"] = boot(ece_of(p, y))
    slope, intercept = calibration(p, y) if n else (found["brier"], found["brier"])
    found["calibration_slope"], found["calibration_intercept"] = slope, intercept
    return [Found(name, metric, interval) for metric, interval in found.items()]


def auroc(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    seed: int,
    strata: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
) -> Interval:
    """Return the AUROC with DeLong's interval; the bootstrap's stands in the note, so that both can be
    compared."""
    p, y = checked(probabilities, targets)
    interval = delong(p, y)
    if interval.low is None or interval.method.startswith("exact"):
        return interval
    other = bootstrap(auroc_of(p, y), len(p), seed=seed, strata=strata, draws=draws)
    if other.low is None:
        return interval
    return interval._replace(note=f"{other.method}: {other.low:.3f} to {other.high:.3f}")


def proportion(part: int, whole: int, method: str, absent: str) -> Interval:
    """Return a share of patients with Wilson's interval."""
    if whole == 0:
        return Interval(None, None, None, 0, method, absent)
    low, high = wilson(part, whole)
    return Interval(part / whole, low, high, whole, method)


def measure(
    probabilities: ArrayLike,
    targets: ArrayLike,
    classes: Sequence[str],
    *,
    seed: int,
    thresholds: Sequence[float] | None = None,
    fixed: str = "not fixed on validation patients",
    strata: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
) -> list[Found]:
    """Return every metric of a classifier; two classes are one question, more are also averaged over classes.

    Args:
        probabilities: (patients, classes), rows summing to one.
        targets: each patient's class number.
        classes: names; of two, the second is the one that is looked for.
        seed: of the bootstrap.
        thresholds: an operating point a class; of two classes the second's.
        fixed: where they were fixed.
        strata: each patient's hospital.
        draws: of the bootstrap.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), class_numbers(targets, len(classes))
    if p.shape != (len(y), len(classes)):
        raise DataError(f"probabilities have shape {p.shape}, expected {(len(y), len(classes))}")
    if len(p) and not np.abs(p.sum(axis=1) - 1).max() < 1e-3:
        raise DataError("probabilities of a patient do not sum to one; apply softmax before the evaluation")
    points = list(thresholds) if thresholds is not None else [0.5] * len(classes)
    if len(classes) == 2:
        return measure_class(
            None, p[:, 1], y == 1, threshold=points[1], fixed=fixed, seed=seed, strata=strata, draws=draws
        )
    found = []
    for place, name in enumerate(classes):
        found += measure_class(
            name,
            p[:, place],
            y == place,
            threshold=points[place],
            fixed=fixed,
            seed=seed,
            strata=strata,
            draws=draws,
        )
    return _over_classes(p, y.astype(int), seed, strata, draws) + found


def _over_classes(
    p: Floats, y: NDArray[np.intp], seed: int, strata: Sequence[Hashable] | None, draws: int
) -> list[Found]:
    """Return the macro averages: every class counts alike, however rare."""
    classes = p.shape[1]
    one_hot = np.eye(classes)[y]
    called = np.eye(classes)[p.argmax(axis=1)] if len(p) else one_hot

    def macro(parts: list[Statistic]) -> Statistic:
        # A class that was not drawn leaves the average undefined, rather than averaging over fewer classes.
        return lambda counts: np.mean([part(counts) for part in parts], axis=0)

    def recall(place: int) -> Statistic:
        right, there = one_hot[:, place] * called[:, place], one_hot[:, place]
        return lambda counts: _ratio(counts @ right, counts @ there)

    def top_label(counts: Floats) -> Floats:
        top = p.max(axis=1)
        return ece_of(top, p.argmax(axis=1) == y)(counts)

    masks = [y == place for place in range(classes)]
    statistics: dict[str, Statistic] = {
        "auroc": macro([auroc_of(p[:, place], masks[place]) for place in range(classes)]),
        "auprc": macro([average_precision_of(p[:, place], masks[place]) for place in range(classes)]),
        "f1": macro([f1_of(called[:, place], masks[place], 0.5) for place in range(classes)]),
        "balanced_accuracy": macro([recall(place) for place in range(classes)]),
        "brier": mean_of(((p - one_hot) ** 2).sum(axis=1)),
        "ece": top_label,
    }
    found = []
    for metric, statistic in statistics.items():
        interval = bootstrap(statistic, len(p), seed=seed, strata=strata, draws=draws)
        if interval.value is None and len(p):
            interval = interval._replace(note="a class without patients")
        found.append(Found(None, metric, interval))
    right = int((p.argmax(axis=1) == y).sum()) if len(p) else 0
    found.append(Found(None, "accuracy", proportion(right, len(p), "Wilson", "no patients")))
    return found
