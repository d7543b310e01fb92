"""Calibration against statsmodels, and a temperature that was put in."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from medfed.errors import DataError
from medfed.evaluation import calibration as k


def sample(seed, n):
    generator = np.random.default_rng(seed)
    y = generator.random(n) < 0.4
    return 1 / (1 + np.exp(-(generator.normal(0, 1, n) + 1.2 * y - 0.8))), y


def test_calibration_equals_statsmodels():
    p, y = sample(5, 300)
    logit = np.log(p / (1 - p))
    slope = sm.Logit(y, sm.add_constant(logit)).fit(disp=0)
    intercept = sm.GLM(y, np.ones(300), offset=logit, family=sm.families.Binomial()).fit()
    curve = k.calibration(p, y)
    assert curve.slope.value == pytest.approx(slope.params[1], rel=1e-6)
    assert curve.slope.low == pytest.approx(slope.conf_int()[1, 0], rel=1e-5)
    assert curve.intercept.value == pytest.approx(intercept.params[0], rel=1e-6)
    assert curve.intercept.high == pytest.approx(intercept.conf_int()[0, 1], rel=1e-5)


def test_temperature_finds_the_overconfidence_that_was_put_in():
    generator = np.random.default_rng(0)
    truth = 1 / (1 + np.exp(-generator.normal(0, 1.5, 20000)))
    y = generator.random(20000) < truth
    confident = 1 / (1 + (1 / truth - 1) ** 2.5)
    fitted = k.temperature(confident, y)
    assert fitted == pytest.approx(2.5, rel=0.05)
    softened = k.rescaled(confident, fitted)
    assert np.abs(softened - truth).max() < 0.02
    assert (np.argsort(softened, kind="stable") == np.argsort(confident, kind="stable")).all()


def test_temperatures_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="at least one of each"):
        k.temperature([], [])
    with pytest.raises(DataError, match="expected a number above 0"):
        k.rescaled([0.2, 0.8], 0.0)
    with pytest.raises(DataError, match="between 0 and 1; apply softmax"):
        k.temperature([0.2, 1.2], [0, 1])
