"""Noise on counts: its size, its epsilon by another formula, and whole numbers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from medfed.errors import PrivacyError
from medfed.privacy._patient_noise import PatientNoise, with_noise


def exact_delta(sensitivity: float, deviation: float, epsilon: float) -> float:
    """Return the delta of a Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8)."""
    half, rest = sensitivity / (2 * deviation), epsilon * deviation / sensitivity
    return float(norm.cdf(half - rest) - math.exp(epsilon) * norm.cdf(-half - rest))


def test_the_noise_is_that_of_the_exact_gaussian_mechanism():
    noise = PatientNoise(epsilon=1.0, delta=1e-5)
    deviation = noise.deviation(9)
    # A sensitivity of sqrt(9); the accountant's bound may cost a few per cent of noise and never less.
    assert exact_delta(3.0, deviation, 1.0) <= 1e-5
    assert exact_delta(3.0, deviation, 0.95) > 1e-5
    assert deviation == pytest.approx(3 * noise.cost().noise_multiplier)
    assert (noise.cost().sample_rate, noise.cost().steps) == (1.0, 1)


def test_the_noise_has_its_deviation_and_is_whole():
    drawn = with_noise(torch.full((200_000,), 7.0), 5.0) - 7
    assert torch.equal(drawn, drawn.round())
    # Rounding adds a twelfth to the variance; 200,000 draws say it to 0.16 % (one deviation).
    assert float(drawn.std()) == pytest.approx(math.sqrt(25 + 1 / 12), rel=0.01)
    assert abs(float(drawn.mean())) < 0.07
    assert not torch.equal(drawn, with_noise(torch.zeros(200_000), 5.0))


def test_noise_that_drowns_every_hospital_is_an_error():
    with pytest.raises(
        PrivacyError, match=r"epsilon 0\.0001 at delta 1e-05 takes more noise than any hospital has"
    ):
        PatientNoise(epsilon=1e-4, delta=1e-5).deviation(100_000)
