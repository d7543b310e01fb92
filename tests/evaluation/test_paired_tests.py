"""The sign-flip test: exact for few patients, and it rejects as often as its level says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medfed.evaluation.paired_tests import sign_flip


def test_sign_flips_are_exact_for_few_patients():
    differences = np.random.default_rng(0).normal(0.4, 1, 10)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences, 0) == pytest.approx(expected.pvalue)
    # All five positive: only the observed pattern and its mirror image are as extreme.
    assert sign_flip(np.array([1.0, 2, 3, 4, 5]), 0) == 2 / 32


def test_sign_flips_reject_as_often_as_they_say():
    generator = np.random.default_rng(1)
    rejected = np.mean([sign_flip(generator.normal(0, 1, 20), run) < 0.05 for run in range(300)])
    assert 0.02 <= rejected <= 0.08


def test_flips_of_many_patients_are_normal():
    differences = np.random.default_rng(4).normal(0.1, 1, 400)
    signs = np.random.default_rng(5).choice([-1.0, 1.0], (20_000, 400))
    flipped = np.mean(np.abs(signs @ differences) >= abs(differences.sum()))
    assert sign_flip(differences, 0) == pytest.approx(flipped, abs=0.01)
