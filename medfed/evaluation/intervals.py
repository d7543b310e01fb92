"""Confidence intervals over patients, Holm's correction, and suppression of small groups.

The unit is the patient. Several images of one patient are averaged first (`patients`), so ten copies of a
patient's rows leave an interval as wide as it was.

**Bootstrap.** A resample is a row of counts that says how often each patient was drawn. A statistic takes all
rows at once and returns one value per row, so that 2,000 resamples of an AUROC are a matrix operation instead
of a loop. Where hospitals are pooled, patients are drawn within their hospital; hospitals with fewer than
five patients are drawn together. Two kinds: "percentile", and "bca" (Efron, JASA 1987), which corrects bias
and skewness. Both are expanded for small samples as Hesterberg (The American Statistician 2015, 69:371)
derives: the bootstrap's variance is too small by (n - 1) / n, and its normal quantile where a t belongs.
Without that a 95 % interval of 16 patients covers about 91 %.

**Few patients.** Of fewer than ten patients some resamples are one patient several times over, and their
quantiles are single patients' values. Such an interval is Student's, with the jackknife's standard error.

**Proportions** have Wilson's interval: a bootstrap of 10 successes in 10 says "1 to 1".

>>> [round(bound, 3) for bound in wilson(10, 10)]
[0.722, 1.0]
>>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
[0.03, 0.06, 0.06]
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medfed.errors import DataError

Floats = NDArray[np.float64]
# (resamples, patients) counts -> (resamples,) values; NaN where a resample leaves it undefined.
Statistic = Callable[[Floats], Floats]

CONFIDENCE = 0.95
# The normal quantile of a 95 % interval, about 1.96.
Z_95 = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
DRAWS = 2000
# An interval that spans more than this share of the metric's range (or of twice the value) is marked as wide.
WIDE_SHARE = 0.3
# Resamples without a value (only one class drawn) are left out; beyond this share the interval is withheld.
MAX_UNDEFINED_SHARE = 0.05
# Fewer patients of a hospital say too little about its spread; a single one would seem to have none. Small
# hospitals are resampled together, which counts the differences between them as chance and errs on the wide
# side.
MIN_STRATUM = 5
# A bootstrap of fewer patients covers less than its nominal level (of five: about 87 % instead of 95 %), and
# its ends are single patients' values. They have Student's interval, which is still narrow where values are
# skewed, as the row's note says.
MIN_RELIABLE = 10
TOO_NARROW = "so likely too narrow"
STUDENT = "Student's t, jackknife over patients"
# A BCa interval needs at least this share of the resamples on either side of the value.
MIN_ONE_SIDE = 0.05
# Counts are made in blocks of about this many numbers, so that 20,000 patients do not fill the memory.
MAX_COUNTS = 8_000_000


class Interval(NamedTuple):
    """A value with its confidence interval; where one is missing, `note` says why."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    note: str | None = None

    def with_note(self, note: str | None) -> Interval:
        """Return the interval with another part of its note, if there is one."""
        return self._replace(note="; ".join(filter(None, (self.note, note))) or None)


def wald(value: float, error: float, n: int, method: str) -> Interval:
    """Return the normal interval of an estimate with a standard error."""
    return Interval(value, value - Z_95 * error, value + Z_95 * error, n, method)


def resamples(
    strata: Sequence[Hashable] | None, patients: int, draws: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Yield (draws, patients) counts in blocks; each row draws every stratum's patients with replacement."""
    groups = _groups(strata, patients)
    if patients * draws <= MAX_COUNTS:
        # A report needs the same resamples for each metric and model, so the last few are cached.
        yield _cached_counts(tuple(members.tobytes() for members in groups), patients, draws, seed)
        return
    generator = np.random.default_rng(seed)
    block = max(1, MAX_COUNTS // patients)
    for start in range(0, draws, block):
        yield _counts(generator, groups, patients, min(block, draws - start))


@lru_cache(maxsize=6)
def _cached_counts(groups: tuple[bytes, ...], patients: int, draws: int, seed: int) -> NDArray[np.float64]:
    members = [np.frombuffer(some, dtype=np.intp) for some in groups]
    counts = _counts(np.random.default_rng(seed), members, patients, draws)
    counts.flags.writeable = False
    return counts


def _counts(
    generator: np.random.Generator, groups: list[NDArray[np.intp]], patients: int, draws: int
) -> NDArray[np.float64]:
    counts = np.zeros((draws, patients))
    for members in groups:
        drawn = members[generator.integers(0, len(members), (draws, len(members)))]
        flat = (drawn + patients * np.arange(draws)[:, None]).ravel()
        counts += np.bincount(flat, minlength=draws * patients).reshape(draws, patients)
    return counts


def _groups(strata: Sequence[Hashable] | None, patients: int) -> list[NDArray[np.intp]]:
    """Return the patients of each stratum, with the small strata joined."""
    if strata is None:
        return [np.arange(patients)]
    if len(strata) != patients:
        raise ValueError(f"{len(strata)} strata for {patients} patients")
    places: dict[Hashable, list[int]] = {}
    for place, stratum in enumerate(strata):
        places.setdefault(stratum, []).append(place)
    # By name, so that the order in which hospitals were read changes no digit.
    ordered = [places[stratum] for stratum in sorted(places, key=str)]
    large = [members for members in ordered if len(members) >= MIN_STRATUM]
    small = [place for members in ordered if len(members) < MIN_STRATUM for place in members]
    if small and large and len(small) < MIN_STRATUM:
        # Too few even together: they join the smallest of the others.
        min(large, key=len).extend(small)
    elif small:
        large.append(small)
    return [np.array(members) for members in large]


class Resampling(NamedTuple):
    """How patients are resampled: the seed, each patient's hospital if several are pooled, the draws."""

    seed: int
    strata: Sequence[Hashable] | None = None
    draws: int = DRAWS

    def within(self, chosen: NDArray[np.bool_]) -> Resampling:
        """Return the resampling of some of the patients."""
        if self.strata is None:
            return self
        strata = [stratum for stratum, taken in zip(self.strata, chosen, strict=True) if taken]
        return self._replace(strata=strata)

    def interval(
        self,
        statistic: Statistic,
        patients: int,
        kind: Literal["bca", "percentile"] = "bca",
        undefined: str | None = None,
    ) -> Interval:
        """Return the statistic of all patients and its bootstrap interval over patients.

        Args:
            statistic: see `Statistic`; counts may also be weights.
            patients: how many there are.
            kind: "bca" or "percentile".
            undefined: the note if the statistic has no value on these patients.
        """
        name = "BCa" if kind == "bca" else "percentile"
        method = f"{name} bootstrap over patients, {self.draws} draws, seed {self.seed}"
        if patients == 0:
            return Interval(None, None, None, 0, method, "no patients")
        groups = _groups(self.strata, patients)
        if len(groups) > 1:
            method += ", within hospitals"
        value = float(statistic(np.ones((1, patients)))[0])
        if not np.isfinite(value):
            note = undefined or "undefined on these patients"
            return Interval(None, None, None, patients, method, note)
        alone = Interval(value, None, None, patients, method)
        freedom = patients - len(groups)
        if freedom < 1:
            return alone._replace(note="no interval: a single patient")
        if patients < MIN_RELIABLE:
            return _student(statistic, alone, groups, freedom)
        counts = resamples(self.strata, patients, self.draws, self.seed)
        resampled = np.concatenate([statistic(block) for block in counts])
        defined = resampled[np.isfinite(resampled)]
        if len(defined) < (1 - MAX_UNDEFINED_SHARE) * self.draws:
            share = 1 - len(defined) / self.draws
            return alone._replace(note=f"no interval: undefined in {share:.0%} of the resamples")
        if float(np.ptp(defined)) == 0.0:
            return alone._replace(note="no interval: all patients alike")
        # Hesterberg's expansion: the normal quantile that this n's t quantile and variance correspond to.
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * np.sqrt(patients / freedom)
        if kind == "percentile":
            levels = stats.norm.cdf([-quantile, quantile])
        elif (side := _one_sided(value, defined)) is not None:
            return alone._replace(note=f"no interval: nearly all resamples lie {side} this value")
        else:
            levels = _bca_levels(statistic, value, defined, groups, quantile)
        low, high = (float(bound) for bound in np.quantile(defined, levels))
        return Interval(value, low, high, patients, method)


def _student(statistic: Statistic, alone: Interval, groups: list[NDArray[np.intp]], freedom: int) -> Interval:
    """Return Student's interval with the jackknife's standard error, taken within strata.

    Of a mean it is the usual one. Where it reaches beyond the metric's range, `RowFactory.row` ends it.
    """
    assert alone.value is not None
    left_out = statistic(1.0 - np.eye(alone.n))
    if not np.isfinite(left_out).all():
        return alone._replace(note="no interval: undefined without one of the patients")
    variance = sum(
        (len(some) - 1) / len(some) * float(((left_out[some] - left_out[some].mean()) ** 2).sum())
        for some in groups
    )
    if variance < 1e-24:
        return alone._replace(note="no interval: all patients alike")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * float(np.sqrt(variance))
    method = STUDENT + (", within hospitals" if len(groups) > 1 else "")
    note = f"of {alone.n} patients, {TOO_NARROW}"
    return Interval(alone.value, alone.value - half, alone.value + half, alone.n, method, note)


def _one_sided(value: float, resampled: Floats) -> str | None:
    """Return 'above' or 'below' if nearly all resamples lie there, else None.

    A statistic that chance can only raise, such as a calibration error near 0, has resamples above it. Moved
    by so large a bias, a BCa interval shrinks to a point that may not even hold the value.
    """
    below = _share_below(value, resampled)
    if below < MIN_ONE_SIDE:
        return "above"
    return "below" if below > 1 - MIN_ONE_SIDE else None


def _share_below(value: float, resampled: Floats) -> float:
    # Half of the ties count as below, or a statistic on few values would look biased (Efron and Tibshirani
    # 14.14).
    ties = 0.5 * np.count_nonzero(resampled == value)
    return float((np.count_nonzero(resampled < value) + ties) / len(resampled))


def _bca_levels(
    statistic: Statistic, value: float, resampled: Floats, groups: list[NDArray[np.intp]], quantile: float
) -> Floats:
    bias = float(stats.norm.ppf(_share_below(value, resampled)))
    acceleration = _acceleration(statistic, groups)
    moved = bias + np.array([-quantile, quantile])
    return np.asarray(stats.norm.cdf(bias + moved / (1 - acceleration * moved)), dtype=np.float64)


def _acceleration(statistic: Statistic, groups: list[NDArray[np.intp]]) -> float:
    """Return the skewness of the jackknife's influence values, taken within strata."""
    patients = sum(len(members) for members in groups)
    cubes = squares = 0.0
    step = max(1, MAX_COUNTS // patients)
    for members in groups:
        left_out = []
        for start in range(0, len(members), step):
            some = members[start : start + step]
            weights = np.ones((len(some), patients))
            weights[np.arange(len(some)), some] = 0.0
            left_out.append(statistic(weights))
        values = np.concatenate(left_out)
        values = values[np.isfinite(values)]
        if len(values) > 1:
            influence = (len(members) - 1) * (values.mean() - values)
            cubes += float((influence**3).sum())
            squares += float((influence**2).sum())
    return cubes / (6.0 * squares**1.5) if squares > 0 else 0.0


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Return `top / bottom`, NaN where `bottom` is not above 0."""
    undefined = np.full(np.broadcast(top, bottom).shape, np.nan)
    return np.asarray(np.divide(top, bottom, out=undefined, where=bottom > 0))


def mean_of(values: ArrayLike) -> Statistic:
    """Return the statistic 'mean over the drawn patients', ignoring patients whose value is NaN."""
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    filled = np.where(known, array, 0.0)

    def statistic(counts: Floats) -> Floats:
        drawn = counts @ known.astype(np.float64)
        return ratio(counts @ filled, drawn)

    return statistic


def quantile_of(values: ArrayLike, quantile: float) -> Statistic:
    """Return the statistic 'smallest value that this share of the drawn patients does not exceed'."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return lambda counts: np.full(len(counts), np.nan)
    order = np.argsort(array, kind="stable")
    ordered = array[order]

    def statistic(counts: Floats) -> Floats:
        share = np.cumsum(counts[:, order], axis=1)
        # The mean of the two middle values where the count is even, as is usual for a median.
        target = quantile * share[:, -1:]
        lower = np.minimum((share < target - 1e-9).sum(axis=1), len(ordered) - 1)
        upper = np.minimum((share <= target + 1e-9).sum(axis=1), len(ordered) - 1)
        with np.errstate(invalid="ignore"):
            return np.asarray((ordered[lower] + ordered[upper]) / 2)

    return statistic


def central_mean_of(values: ArrayLike, patients: int) -> Statistic:
    """Return the statistic 'mean of so many patients in the middle'; of one patient it is the median.

    Of an even number of patients around one, the two in the middle count half each.
    """
    array = np.asarray(values, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    finite = np.where(np.isfinite(ordered), ordered, 0.0)

    def statistic(counts: Floats) -> Floats:
        drawn = np.asarray(counts[:, order], dtype=np.float64)
        above = np.cumsum(drawn, axis=1)
        total = above[:, -1:] if len(ordered) else np.zeros((len(counts), 1))
        half = np.minimum(max(patients, 1), total) / 2
        inside = np.minimum(above, total / 2 + half) - np.maximum(above - drawn, total / 2 - half)
        weights = np.clip(inside, 0.0, None)
        if patients > 1:
            # A resample that draws one patient so often says that patient's value.
            weights[weights.max(axis=1, initial=0.0) > weights.sum(axis=1) - 1e-9] = 0.0
        infinite = (weights > 1e-9) @ np.isinf(ordered).astype(np.float64) > 0
        return np.where(infinite, np.inf, ratio(weights @ finite, weights.sum(axis=1)))

    return statistic


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (JASA 1927), also at 0 and 1; 0 to 1 without trials."""
    if not 0 <= successes <= trials:
        raise DataError(
            f"{successes} of {trials}: the successes of a proportion must be from 0 to the number of trials"
        )
    if trials == 0:
        return 0.0, 1.0
    share, z = successes / trials, Z_95
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # Exactly 0 and 1 there, which rounding can miss, so that no value is outside its own interval.
    low = 0.0 if successes == 0 else max(0.0, float(middle - half))
    return low, 1.0 if successes == trials else min(1.0, float(middle + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for multiple testing by Holm's step-down method (1979)."""
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError("p values must be between 0 and 1; omit a test that gave none")
    order = np.argsort(p_values, kind="stable")
    corrected = np.zeros(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return [float(p) for p in corrected]


def is_wide(interval: Interval, lowest: float | None = 0.0, highest: float | None = 1.0) -> bool:
    """Return whether an interval spans a large share of the metric's range, or of the value if unbounded."""
    if interval.low is None or interval.high is None or interval.value is None or lowest is None:
        # Around zero, as for a difference of volumes, no share of the value says anything.
        return False
    scale = highest - lowest if highest is not None else 2 * abs(interval.value)
    return interval.high - interval.low > WIDE_SHARE * scale


def suppressed_groups(sizes: Mapping[str, int], min_patients: int) -> set[str]:
    """Return the groups of one partition that may not be shown: small ones, and others to cover them.

    A single suppressed group could be computed by subtracting the others from the total. So at least two are
    suppressed, and together they hold at least `min_patients` patients. An empty group needs no protection.
    """
    filled = {name: size for name, size in sizes.items() if size > 0}
    small = {name for name, size in filled.items() if size < min_patients}
    others = sorted((name for name in filled if name not in small), key=lambda name: (filled[name], name))
    while small and others and sum(filled[name] for name in small) < min_patients:
        small.add(others.pop(0))
    return small
