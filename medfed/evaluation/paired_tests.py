"""Tests of a difference that is paired by patient.

The interval is a bootstrap of the mean difference. The test flips the sign of each patient's difference, all
2^n ways up to 12 patients and 10,000 random ways above.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from scipy import stats

from medfed.evaluation.intervals import Floats, Interval, Resampling, mean_of

# Up to this many patients every sign pattern is tried, so that the p value is exact.
MAX_EXACT_PATIENTS = 12
FLIPS = 10_000
# Of more patients the flipped sum is taken as normal.
MAX_FLIPPED_PATIENTS = 200


def sign_flip(differences: Floats, seed: int) -> float:
    """Return the p value of 'the mean difference is zero', by flipping the patients' signs."""
    n = len(differences)
    observed = abs(float(differences.sum()))
    if n > MAX_FLIPPED_PATIENTS:
        # Given the sizes of the differences, the flipped sum has mean 0 and this variance.
        spread = float(np.sqrt((differences**2).sum()))
        return float(2 * stats.norm.sf(observed / spread)) if spread > 0 else 1.0
    if n <= MAX_EXACT_PATIENTS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        return float((np.abs(signs @ differences) >= observed - 1e-12).mean())
    extreme = int((np.abs(_signs(n, seed) @ differences) >= observed - 1e-12).sum())
    # The observed pattern counts too: a p value of zero would claim more than was tried.
    return (extreme + 1) / (FLIPS + 1)


@lru_cache(maxsize=2)
def _signs(n: int, seed: int) -> Floats:
    return np.asarray(
        np.random.default_rng(seed).integers(0, 2, (FLIPS, n), dtype=np.int8) * 2.0 - 1.0, dtype=np.float64
    )


def paired_difference(first: Floats, second: Floats, resampling: Resampling) -> tuple[Interval, float | None]:
    """Return the mean difference (first minus second) over patients who have both, and its p value."""
    both = np.isfinite(first) & np.isfinite(second)
    differences = (first - second)[both]
    interval = resampling.within(both).interval(mean_of(differences), len(differences))
    if len(differences) < 2:
        return interval, None
    if unpaired := len(both) - len(differences):
        interval = interval.with_note(f"{count_patients(unpaired)} without a pair left out")
    return interval, sign_flip(differences, resampling.seed)


def count_patients(number: int) -> str:
    """Return a number of patients as text: '1 patient', '2 patients'."""
    return f"{number} patient{'' if number == 1 else 's'}"
