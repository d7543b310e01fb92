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

Thresholds lie on a grid of hundredths: finer ones would be one patient's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

# Every threshold that may be chosen, from the lowest; 0 would find everything and guarantee nothing.
GRID = tuple(number / 100 for number in range(1, 100))


class Guarantee(NamedTuple):
    """A threshold that keeps a guarantee, or None and the reason.

    `patients` were used, of whom `failures` fail at the threshold.
    """

    threshold: float | None
    patients: int
    failures: int = 0
    why_not: str = ""


class RiskCurve(NamedTuple):
    """How many of a hospital's patients fail at each threshold of `GRID`; curves of hospitals add up."""

    patients: int
    failures: tuple[int, ...]

    @classmethod
    def of(cls, scores: ArrayLike) -> RiskCurve:
        """Return the curve of one score per patient: at a threshold above it, the patient fails.

        Raises:
            ValueError: if a score is not finite.
        """
        values = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("a patient has no finite score; leave the patient out, or score a failure 0")
        return cls(len(values), tuple(int((values < threshold).sum()) for threshold in GRID))

    def __add__(self, other: object) -> RiskCurve:
        """Return the curve of both hospitals' patients."""
        if not isinstance(other, RiskCurve):
            return NotImplemented
        return RiskCurve(
            self.patients + other.patients,
            tuple(a + b for a, b in zip(self.failures, other.failures, strict=True)),
        )


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
    allowed = int((1 - share) * (curve.patients + 1) - 1 + 1e-9)
    return _largest(curve, allowed, aim)


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


def _largest(curve: RiskCurve, allowed: int, aim: str) -> Guarantee:
    """Return the largest threshold up to which at no lower one more patients fail than are allowed."""
    best = None
    for threshold, failures in zip(GRID, curve.failures, strict=True):
        if failures > allowed:
            break
        best = Guarantee(threshold, curve.patients, failures)
    if best is not None:
        return best
    failing = f"{curve.failures[0]} of {curve.patients} patients fail at every threshold"
    why_not = f"no guarantee: {failing}, at most {allowed} may for {aim}"
    return Guarantee(None, curve.patients, curve.failures[0], why_not)


def _too_few(patients: int, needed: int, aim: str) -> str:
    return f"no guarantee: {patients} validation patients, {needed} are needed for {aim}"
