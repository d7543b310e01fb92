"""Epsilons against published ones, another library's and a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_ndtr
from scipy.stats import norm

from medfed.errors import PrivacyError
from medfed.privacy.accounting.accountant import (
    ORDERS,
    MechanismSteps,
    compose,
    epsilon,
    epsilon_of_renyi,
    noise_for,
    renyi,
    smallest_epsilon,
)

# The table of TensorFlow Privacy's tutorial on MNIST (github.com/tensorflow/privacy,
# tutorials/README.md, 2019): 60000 images in batches of 256; noise multiplier, epochs, and the epsilon
# printed there for delta 1e-5.
PUBLISHED = [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)]


@pytest.mark.parametrize("noise, epochs, published", PUBLISHED)
def test_published_epsilons(noise, epochs, published):
    charge = MechanismSteps(noise, 256 / 60000, epochs * 60000 // 256)
    # They were published with the conversion of Mironov 2017, proposition 3, written out here by itself;
    # today's is tighter.
    classic = min(
        value + math.log(1e5) / (order - 1) for value, order in zip(renyi([charge]), ORDERS, strict=True)
    )
    assert classic == pytest.approx(published, abs=0.02)
    assert 0.7 * published < epsilon([charge], 1e-5, "rdp") < published


@pytest.mark.parametrize("noise, rate", [(1.1, 256 / 60000), (0.8, 0.3), (5.0, 0.5)])
def test_renyi_of_a_sampled_gaussian_is_the_integral_that_defines_it(noise, rate):
    # Mironov, Talwar, Zhang 2019, equation 3: E over N(0, s^2) of ((1 - q) + q exp((2 z - 1)
    # / (2 s^2)))^order.
    z = np.linspace(-40 * noise, 40 * noise, 400_001)
    density = np.exp(-(z**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    ratio = (1 - rate) + rate * np.exp(np.minimum((2 * z - 1) / (2 * noise**2), 600))
    orders = [1.5, 2.0, 4.25, 8.0]
    expected = [math.log(float(np.trapezoid(density * ratio**order, z))) / (order - 1) for order in orders]
    np.testing.assert_allclose(renyi([MechanismSteps(noise, rate)], orders), expected, rtol=1e-5)


@pytest.mark.slow
def test_prv_of_a_sampled_gaussian_is_that_of_dp_accounting():
    # Google's library, which shares no code with Opacus, on the two distributions cut into small pieces.
    # Cutting can only lose privacy loss, so its epsilon is just below the exact one, and Opacus' upper
    # bound just above.
    distributions = pytest.importorskip("dp_accounting.privacy_loss_distribution")
    charge = MechanismSteps(1.1, 0.05, 200)
    edges = np.linspace(-12, 13, 20_001)
    low = np.diff(norm.cdf(edges, scale=1.1))
    moved = np.diff(norm.cdf(edges, loc=1, scale=1.1))
    high = (1 - charge.sample_rate) * low + charge.sample_rate * moved
    pieces = {
        side: {i: math.log(p) for i, p in enumerate(values) if p > 0}
        for side, values in (("low", low), ("high", high))
    }
    result = distributions.PrivacyLossDistribution.from_two_probability_mass_functions(
        pieces["low"], pieces["high"], pessimistic_estimate=False, value_discretization_interval=1e-4
    )
    theirs = result.self_compose(charge.steps).get_epsilon_for_delta(1e-5)
    assert theirs - 0.01 <= epsilon([charge], 1e-5, "prv") <= theirs + 0.04
    assert epsilon([charge], 1e-5, "prv") < epsilon([charge], 1e-5, "rdp")


def delta_of_gaussian(noise: float, eps: float) -> float:
    """Balle and Wang, ICML 2018, arXiv:1805.06083, theorem 8: the exact delta of one Gaussian mechanism."""
    log = [
        float(log_ndtr(1 / (2 * noise) - eps * noise)),
        eps + float(log_ndtr(-1 / (2 * noise) - eps * noise)),
    ]
    return math.exp(log[0]) - math.exp(log[1])


@pytest.mark.parametrize("noise, steps", [(1.0, 1), (4.0, 16), (3.0, 1), (10.0, 4)])
def test_without_sampling_it_is_the_closed_form_of_one_gaussian_with_less_noise(noise, steps):
    # k releases with noise s are one release with noise s / sqrt(k).
    eps = epsilon([MechanismSteps(noise, 1.0, steps)], 1e-5, "prv")
    alone = noise / math.sqrt(steps)
    assert delta_of_gaussian(alone, eps) <= 1e-5
    assert delta_of_gaussian(alone, eps - 0.03) > 1e-5
    assert epsilon([MechanismSteps(noise, 1.0, steps)], 1e-5, "rdp") >= eps


def test_renyi_without_sampling_is_order_over_twice_the_noise_squared():
    np.testing.assert_allclose(
        renyi([MechanismSteps(2.0, 1.0, 3)]), [3 * order / 8 for order in ORDERS], rtol=1e-12
    )


def test_charges_of_one_mechanism_compose_in_any_order_and_unlike_ones_add_up():
    one, two, other = MechanismSteps(2.0, 0.1, 10), MechanismSteps(2.0, 0.1, 30), MechanismSteps(3.0, 0.5, 5)
    assert compose([one, other, two]) == (MechanismSteps(2.0, 0.1, 40), other)
    np.testing.assert_allclose(
        renyi([one, other, two]), renyi([MechanismSteps(2.0, 0.1, 40)]) + renyi([other])
    )
    for accountant in ("prv", "rdp"):
        both = epsilon([one, other], 1e-5, accountant)
        assert max(epsilon([one], 1e-5, accountant), epsilon([other], 1e-5, accountant)) < both
        assert both < epsilon([one], 1e-5, accountant) + epsilon([other], 1e-5, accountant)


def test_nothing_spent_is_zero_and_no_noise_is_infinite():
    assert epsilon([], 1e-5) == epsilon_of_renyi(np.zeros(len(ORDERS)), 1e-5) == 0.0
    assert epsilon([MechanismSteps(0.0)], 1e-5) == math.inf


def test_the_smaller_bound_is_prv_and_rdp_where_prv_has_none(monkeypatch):
    charge = [MechanismSteps(2.0, 0.2, 20)]
    assert smallest_epsilon(charge, 1e-5) == epsilon(charge, 1e-5, "prv")
    from opacus.accountants.analysis import prv

    from medfed.privacy.accounting import accountant as accounting

    def none(*args, **kwargs):
        raise RuntimeError("Cannot compute epsilon")

    monkeypatch.setattr(prv, "compose_heterogeneous", none)
    accounting._prv.cache_clear()
    with pytest.raises(
        PrivacyError, match=r"20 steps, noise 2, rate 0.2 at delta 1e-05.*take accountant: rdp"
    ):
        epsilon(charge, 1e-5, "prv")
    assert smallest_epsilon(charge, 1e-5) == epsilon(charge, 1e-5, "rdp")


@pytest.mark.parametrize("history", [[(2.0, 0.2, 20)], [(1.1, 0.05, 60), (3.0, 1.0, 2)], [(8.0, 1.0, 5)]])
def test_prv_is_what_opacus_own_accountant_finds(history):
    from opacus.accountants import PRVAccountant

    theirs = PRVAccountant()
    theirs.history = history
    result = epsilon([MechanismSteps(*one) for one in history], 1e-5, "prv")
    assert result == pytest.approx(theirs.get_epsilon(1e-5), abs=0.002)


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_the_noise_for_a_target_meets_it_and_a_little_less_noise_does_not(target, accountant):
    plan = MechanismSteps(0.0, 0.25, 40)
    noise = noise_for(target, 1e-5, plan, accountant)
    assert target * 0.997 <= epsilon([MechanismSteps(noise, 0.25, 40)], 1e-5, accountant) <= target
    assert epsilon([MechanismSteps(0.99 * noise, 0.25, 40)], 1e-5, accountant) > target


def test_the_noise_is_that_which_opacus_finds():
    from opacus.accountants.utils import get_noise_multiplier

    theirs = get_noise_multiplier(
        target_epsilon=3.0, target_delta=1e-5, sample_rate=0.1, steps=100, accountant="rdp"
    )
    assert noise_for(3.0, 1e-5, MechanismSteps(0.0, 0.1, 100), "rdp") == pytest.approx(theirs, rel=0.01)


def test_what_was_spent_before_leaves_less_for_what_comes():
    before = [MechanismSteps(3.0, 0.25, 10)]
    alone = noise_for(3.0, 1e-5, MechanismSteps(0.0, 0.25, 30), "rdp")
    after = noise_for(3.0, 1e-5, MechanismSteps(0.0, 0.25, 30), "rdp", before)
    assert after > alone
    assert epsilon([*before, MechanismSteps(after, 0.25, 30)], 1e-5, "rdp") <= 3.0
    spent = [MechanismSteps(1.0, 1.0, 10)]
    with pytest.raises(PrivacyError, match=r"of 3 \(delta 1e-05\) is already spent and 30 steps remain"):
        noise_for(3.0, 1e-5, MechanismSteps(0.0, 0.25, 30), "rdp", spent)


def test_an_epsilon_that_prv_cannot_hold_is_refused_and_not_under_reported():
    # 696.78 exactly; at noise 0.028 it is 789.1, and the accountant, whose e^epsilon overflows, said 709.8.
    eps = epsilon([MechanismSteps(0.03)], 1e-5, "prv")
    assert delta_of_gaussian(0.03, eps) <= 1e-5
    assert eps == pytest.approx(696.78, abs=0.05)
    for noise in (0.0295, 0.028):
        with pytest.raises(
            PrivacyError, match=r"7\d\d\.\d is beyond 700, where it is not correct\); take acc"
        ):
            epsilon([MechanismSteps(noise)], 1e-5, "prv")
        assert smallest_epsilon([MechanismSteps(noise)], 1e-5) >= 718


@pytest.mark.parametrize("charge", [MechanismSteps(1e-3), MechanismSteps(0.5, 1.0, 1000)], ids=str)
def test_what_would_take_prv_an_hour_is_refused_with_the_reason_at_once(charge, monkeypatch):
    from opacus.accountants.analysis import prv

    monkeypatch.setattr(prv, "compose_heterogeneous", lambda *_, **__: pytest.fail("it began to convolve"))
    with pytest.raises(
        PrivacyError, match=r"would take [68]\.\de\+0[78] points, at most 16777216 are.*take acc"
    ):
        epsilon([charge], 1e-5, "prv")
    assert smallest_epsilon([charge], 1e-5) == epsilon([charge], 1e-5, "rdp")
