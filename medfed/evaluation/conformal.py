"""Thresholds that guarantee something of a hospital's next patients, chosen on validation patients.

A patient has a score: the largest threshold at which the model still succeeds in that patient, such as the
largest probability inside the lesion. Lower thresholds succeed in more patients, so the share of failures is
monotone in the threshold, and no correction for trying many is needed:

- `with_confidence`: the failure rate is at most 1 - share with a stated confidence. Learn then Test
  (Angelopoulos et al. 2021, arXiv:2110.01052) with exact binomial p values in a fixed sequence.
  It needs log(1 - confidence) / log(share) patients: 29 for 90 % with 95 %.
- `on_average`: the expected failure rate is at most 1 - share, over the choice of validation patients too.
  Conformal risk control (Angelopoulos et al. 2022, arXiv:2208.02814); of sets it is split conformal
  prediction. It needs share / (1 - share) patients: 9 for 90 %.

Both hold for patients exchangeable with those it was chosen on: a hospital's own next patients, not those of
another. A threshold over pooled patients (Lu et al. 2023, arXiv:2305.17564) holds for their mixture and may
fail at a hospital that differs. As a lower threshold keeps every guarantee, the least of the hospitals' own
thresholds holds at each of them. (Plassier et al. 2023, arXiv:2306.05131, weigh by a known shift instead.)

Two more, for what leaves a hospital and for what is not a yes or no:

- `on_average` also takes losses between 0 and 1 per patient, such as the share of a structure's voxels that
  is missed: the expected share is then at most 1 - share (voxel-wise risk; arXiv:2208.02814, section 3.1).
- A hospital's own threshold is an order statistic, which is nearly one patient's score. It stays. What leaves
  is `RiskCurve.protected`: upper bounds at the few thresholds of `CUTS`, in steps of no patient or at least
  the smallest group. Bounds add up over hospitals and keep every guarantee; the price is a lower threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# Every threshold that may be chosen, from the lowest; 0 would find everything and guarantee nothing.
GRID = tuple(number / 100 for number in range(1, 100))

# The thresholds at which a curve leaves, in the order in which they are tried as edges of cells: round ones
# first. They do not depend on the data, so an edge says no more of the nearest patient than its cell does.
CUT_ORDER = (
    0.5, 0.1, 0.9, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.05, 0.95, 0.01, 0.99, 0.02, 0.98,
    0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85,
)  # fmt: skip
CUTS = tuple(sorted(CUT_ORDER))
_OF_CUT = {cut: GRID.index(cut) for cut in CUTS}

# Mean losses that leave are rounded up to this: a mean of many zeros and one value would be that value.
MEAN_STEP = 0.01

# How far sums of losses may be off by rounding.
ROUNDING = 1e-9


class Guarantee(NamedTuple):
    """A threshold that keeps a guarantee, or None and the reason.

    `patients` were used, of whom `failures` fail at the threshold.
    """

    threshold: float | None
    patients: int
    failures: float = 0
    why_not: str = ""


class RiskCurve(NamedTuple):
    """Over a hospital's patients, the sum of losses at each threshold of `GRID`; curves of hospitals add up.

    A loss is 1 if the patient fails, 0 if not, or a share between. Sums may be upper bounds.
    """

    patients: int
    losses: tuple[float, ...]

    @classmethod
    def of(cls, scores: ArrayLike) -> RiskCurve:
        """Return the curve of one score per patient: at a threshold above it, the patient fails.

        Raises:
            ValueError: if a score is not finite.
        """
        return cls.of_losses(failures_of(scores))

    @classmethod
    def of_losses(cls, losses: ArrayLike) -> RiskCurve:
        """Return the curve of losses (patients, thresholds of `GRID`), each from 0 to 1 and never falling."""
        table = np.asarray(losses, dtype=np.float64).reshape(-1, len(GRID))
        return cls(len(table), tuple(table.sum(axis=0).tolist()))

    @classmethod
    def of_cuts(cls, patients: int, losses: Mapping[float, float]) -> RiskCurve | None:
        """Return the curve of sums at the thresholds of `CUTS`; None if they contradict each other.

        Between two cuts the sum is that of the next one, an upper bound.
        """
        if set(losses) != set(CUTS):
            return None
        at_cuts = [losses[cut] for cut in CUTS]
        if not 0 <= at_cuts[0] <= at_cuts[-1] <= patients + ROUNDING or at_cuts != sorted(at_cuts):
            return None
        places = np.searchsorted(CUTS, np.asarray(GRID) - ROUNDING)
        return cls(patients, tuple(at_cuts[place] for place in places))

    @property
    def at_cuts(self) -> dict[float, float]:
        """The sums of losses at the thresholds of `CUTS`."""
        return {cut: self.losses[place] for cut, place in _OF_CUT.items()}

    def protected(self, min_patients: int) -> RiskCurve:
        """Return upper bounds on a count of failures, that say nothing of fewer than `min_patients` patients.

        Between two edges lie no patient's scores or those of at least `min_patients`; at a threshold that is
        no edge, all patients up to the next edge count as failures.
        """
        known = self.at_cuts
        edges = {0.0: 0.0, 1.0: float(self.patients)}
        for cut in CUT_ORDER:
            below, above = max(one for one in edges if one < cut), min(one for one in edges if one > cut)
            sides = known[cut] - edges[below], edges[above] - known[cut]
            if not any(0 < side < min_patients for side in sides):
                edges[cut] = known[cut]
        bounds = {cut: edges[min(one for one in edges if one >= cut)] for cut in CUTS}
        curve = RiskCurve.of_cuts(self.patients, bounds)
        assert curve is not None
        return curve

    def rounded_up(self) -> RiskCurve:
        """Return upper bounds on a sum of shares: means at the cuts, rounded up to `MEAN_STEP`."""
        steps = {cut: ceil(loss / max(self.patients, 1) / MEAN_STEP - ROUNDING)
                 for cut, loss in self.at_cuts.items()}  # fmt: skip
        bounds = {cut: round(min(step * MEAN_STEP, 1.0) * self.patients, 6) for cut, step in steps.items()}
        curve = RiskCurve.of_cuts(self.patients, bounds)
        assert curve is not None
        return curve

    def __add__(self, other: object) -> RiskCurve:
        """Return the curve of both hospitals' patients."""
        if not isinstance(other, RiskCurve):
            return NotImplemented
        return RiskCurve(
            self.patients + other.patients,
            tuple(a + b for a, b in zip(self.losses, other.losses, strict=True)),
        )


def failures_of(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the losses (patients, thresholds) of one score per patient: 1 at each threshold above it.

    Raises:
        ValueError: if a score is not finite.
    """
    values = np.asarray(scores, dtype=np.float64).reshape(-1, 1)
    if not np.isfinite(values).all():
        raise ValueError("a patient has no finite score; leave the patient out, or score a failure 0")
    return (values < np.asarray(GRID)).astype(np.float64)


def with_confidence(curve: RiskCurve, share: float, confidence: float) -> Guarantee:
    """Return the largest threshold at which at least `share` succeed, with this confidence."""
    needed = ceil(log(1 - confidence) / log(share) - 1e-9)
    aim = f"{share:.0%} with {confidence:.0%} confidence".replace("%", " %")
    if curve.patients < needed:
        return Guarantee(None, curve.patients, why_not=_too_few(curve.patients, needed, aim))
    allowed = int(stats.binom.ppf(1 - confidence, curve.patients, 1 - share))
    if stats.binom.cdf(allowed, curve.patients, 1 - share) > 1 - confidence:
        allowed -= 1
    return _largest(curve, allowed, aim)


def on_average(curve: RiskCurve, share: float) -> Guarantee:
    """Return the largest threshold at which at least `share` are expected to succeed."""
    needed = ceil(share / (1 - share) - 1e-9)
    aim = f"{share:.0%} on average".replace("%", " %")
    if curve.patients < needed:
        return Guarantee(None, curve.patients, why_not=_too_few(curve.patients, needed, aim))
    return _largest(curve, (1 - share) * (curve.patients + 1) - 1 + 1e-9, aim)


def least_of(guarantees: Sequence[Guarantee]) -> Guarantee:
    """Return the threshold that holds at each of several hospitals: the least of their own."""
    patients = sum(one.patients for one in guarantees)
    lacking = sum(one.threshold is None for one in guarantees)
    thresholds = [one.threshold for one in guarantees if one.threshold is not None]
    if lacking or not thresholds:
        return Guarantee(
            None, patients, why_not=f"no guarantee: {lacking} of {len(guarantees)} hospitals have none"
        )
    return Guarantee(min(thresholds), patients)


def _largest(curve: RiskCurve, allowed: float, aim: str) -> Guarantee:
    """Return the largest threshold up to which at no lower one the loss is more than is allowed."""
    best = None
    for threshold, loss in zip(GRID, curve.losses, strict=True):
        if loss > allowed:
            break
        best = Guarantee(threshold, curve.patients, loss)
    if best is not None:
        return best
    failing = f"{curve.losses[0]:.3g} of {curve.patients} patients fail at every threshold"
    why_not = f"no guarantee: {failing}, at most {int(allowed)} may for {aim}"
    return Guarantee(None, curve.patients, curve.losses[0], why_not)


def _too_few(patients: int, needed: int, aim: str) -> str:
    return f"no guarantee: {patients} validation patients, {needed} are needed for {aim}"
