"""Epsilon of a sequence of noised releases, by Opacus' accountants.

All releases under differential privacy are Gaussian mechanisms, possibly on a Poisson sample; a
`MechanismSteps` describes a number of steps of one. Steps compose, within a study and across studies. There
are two accountants: `rdp` adds Rényi divergences (Mironov, CSF 2017, arXiv:1702.07476; Mironov, Talwar, Zhang
2019, arXiv:1908.10530), and `prv` convolves privacy loss distributions (Gopi, Lee, Wutschitz, NeurIPS 2021,
arXiv:2106.02848) and is tighter. Both give upper bounds on epsilon, so the smaller of the two is valid, too.
Neighbouring data sets differ by one patient (or site) added or removed.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from medfed.errors import PrivacyError

Accountant = Literal["prv", "rdp"]

# The orders of Rényi divergence. There are fewer than in Opacus between 3 and 11, where a fractional order
# needs a long series and improves epsilon by less than 0.01, and larger ones for much noise and few steps.
ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 21)),
    *(3 + quarter / 4 for quarter in range(1, 13)),
    *(6 + half / 2 for half in range(1, 10)),
    *(float(order) for order in range(11, 64)),
    *(64.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0),
)

# The search for a noise multiplier: epsilon may be below its target by this share of it; the largest noise
# multiplier that is tried; and the maximum number of guesses.
EPSILON_TOLERANCE = 0.002
MAX_NOISE = 1e5
MAX_GUESSES = 60

# The PRV accountant's errors in epsilon, and in delta as a share of it; its bound includes both.
PRV_ERROR = 0.01
PRV_DELTA_SHARE = 1e-3

# The most points on which the PRV accountant convolves, 128 MiB per distribution: an epsilon of 30 after
# 10,000 steps has 2 million. Noise of a thousandth of the sensitivity asks for a billion: an hour, and all
# memory.
MAX_PRV_POINTS = 1 << 24

# The largest epsilon that the PRV accountant finds: it computes e^epsilon, which overflows at 709 and then
# gives 709 for any larger one (Opacus 1.5; noise 0.028 of the sensitivity has 789).
MAX_PRV_EPSILON = 700.0


@dataclass(frozen=True)
class MechanismSteps:
    """Steps of a Gaussian mechanism whose noise is `noise_multiplier` times its sensitivity.

    sample_rate: the probability of each patient to be in a step; 1 without sampling, or if it is not secret.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1


def compose(charges: Sequence[MechanismSteps]) -> tuple[MechanismSteps, ...]:
    """Return one charge per mechanism, with the steps of equal mechanisms added; order does not matter."""
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[charge.noise_multiplier, charge.sample_rate] += charge.steps
    return tuple(MechanismSteps(noise, rate, count) for (noise, rate), count in steps.items() if count)


def renyi(charges: Sequence[MechanismSteps], orders: Sequence[float] = ORDERS) -> np.ndarray:
    """Return the total Rényi divergence of all charges at each order."""
    total = np.zeros(len(orders))
    for charge in compose(charges):
        step = _renyi_step(charge.noise_multiplier, charge.sample_rate, tuple(orders))
        total += charge.steps * np.array(step)
    return total


@lru_cache(maxsize=4096)
def _renyi_step(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    from opacus.accountants.analysis.rdp import compute_rdp

    divergences = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(orders))
    return tuple(float(value) for value in np.atleast_1d(divergences))


def epsilon_of_renyi(divergences: np.ndarray, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the epsilon of Rényi divergences at a delta (Balle et al., arXiv:1905.09982)."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    if not np.any(divergences):
        return 0.0
    with warnings.catch_warnings():
        # Opacus warns if the best order is the largest; the bound holds anyway.
        warnings.simplefilter("ignore")
        bound, _ = get_privacy_spent(orders=list(orders), rdp=divergences, delta=delta)
    return max(float(bound), 0.0)


def epsilon(charges: Sequence[MechanismSteps], delta: float, accountant: Accountant = "prv") -> float:
    """Return the epsilon that these charges spend together at this delta; 0 for none.

    Raises:
        PrivacyError: if the PRV accountant fails numerically for these charges, which happens at extremes.
    """
    charges = compose(charges)
    if not charges:
        return 0.0
    if any(charge.noise_multiplier <= 0 for charge in charges):
        return math.inf
    if accountant == "rdp":
        return epsilon_of_renyi(renyi(charges), delta)
    return _prv(charges, delta)


@lru_cache(maxsize=4096)
def _prv(charges: tuple[MechanismSteps, ...], delta: float) -> float:
    from opacus.accountants.analysis import prv

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            domain = _domain(charges, delta)
            whole = prv.compose_heterogeneous(
                dprvs=[_discrete_loss(charge, domain) for charge in charges],
                num_self_compositions=[charge.steps for charge in charges],
            )
            bound = float(whole.compute_epsilon(delta, delta * PRV_DELTA_SHARE, PRV_ERROR)[2])
        if not bound <= MAX_PRV_EPSILON:
            raise ValueError(f"{bound:.4g} is beyond {MAX_PRV_EPSILON:g}, where it is not correct")
        return bound
    except (ArithmeticError, RuntimeError, ValueError, MemoryError, LookupError) as error:
        described = ", ".join(
            f"{c.steps} steps, noise {c.noise_multiplier:.3g}, rate {c.sample_rate:.3g}" for c in charges
        )
        raise PrivacyError(
            f"the PRV accountant finds no epsilon for {described} at delta {delta:g} "
            f"({type(error).__name__}: {error}); take accountant: rdp"
        ) from None


def _discrete_loss(charge: MechanismSteps, domain: Any) -> Any:
    """Return the distribution of one step's privacy loss on the domain."""
    from opacus.accountants.analysis import prv

    loss = prv.PoissonSubsampledGaussianPRV(charge.sample_rate, charge.noise_multiplier)
    return prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)


def _domain(charges: Sequence[MechanismSteps], delta: float) -> Any:
    """Return the truncation and mesh of privacy losses, as Opacus' PRVAccountant does (remark 5.6).

    Opacus computes a mechanism's Rényi divergences anew for every number of steps, which took most of the
    time; these are cached.
    """
    from opacus.accountants.analysis import prv

    steps, error = sum(charge.steps for charge in charges), delta * PRV_DELTA_SHARE
    # A whole order takes a short sum; the bound holds at any.
    orders = tuple(order for order in ORDERS if order.is_integer())

    def bound(some: Sequence[MechanismSteps], most: float) -> float:
        return epsilon_of_renyi(renyi(some, orders), most, orders)

    bounds = [bound(charges, error / 4)]
    bounds += [bound([replace(one, steps=1)], error / (8 * steps)) for one in charges]
    length = max(*bounds, PRV_ERROR) + 3
    mesh = PRV_ERROR / math.sqrt(steps * math.log(12 / error) / 2)
    if not 2 * length / mesh <= MAX_PRV_POINTS:
        raise ValueError(
            f"an epsilon of about {length:.3g} would take {2 * length / mesh:.1e} points, at most "
            f"{MAX_PRV_POINTS} are computed"
        )
    return prv.Domain.create_aligned(-length, length, mesh)


def smallest_epsilon(charges: Sequence[MechanismSteps], delta: float) -> float:
    """Return the smaller of both accountants' bounds, or the RDP bound if the PRV accountant fails."""
    bound = epsilon(charges, delta, "rdp")
    try:
        return min(bound, epsilon(charges, delta, "prv"))
    except PrivacyError:
        return bound


def noise_for(
    target: float,
    delta: float,
    plan: MechanismSteps,
    accountant: Accountant = "prv",
    before: Sequence[MechanismSteps] = (),
) -> float:
    """Return the smallest noise multiplier that keeps a plan, after `before`, within a target epsilon.

    `plan.noise_multiplier` is ignored. Like Opacus' `get_noise_multiplier`, but it includes what an
    interrupted run has already released.

    Raises:
        PrivacyError: if no noise suffices, because the target is spent or far too small.
    """
    spent = epsilon(before, delta, accountant)
    if spent >= target:
        raise PrivacyError(
            f"epsilon {spent:.3f} of {target:g} (delta {delta:g}) is already spent and {plan.steps} steps "
            "remain; nothing more can be released under this target"
        )

    def after(noise: float) -> float:
        return epsilon((*before, replace(plan, noise_multiplier=noise)), delta, accountant)

    low, low_epsilon, high, high_epsilon = 0.0, math.inf, 1.0, after(1.0)
    while high_epsilon > target:
        low, low_epsilon, high = high, high_epsilon, 2 * high
        if high > MAX_NOISE:
            raise PrivacyError(
                f"no noise keeps {plan.steps} steps within epsilon {target:g} at delta {delta:g} after "
                f"{spent:.3f} was spent; fewer rounds or a larger epsilon would do"
            )
        high_epsilon = after(high)
    for _ in range(MAX_GUESSES):
        if high_epsilon >= target * (1 - EPSILON_TOLERANCE) or high - low < 1e-4 * high:
            break
        guess = _between(low, low_epsilon, high, high_epsilon, target)
        guess_epsilon = after(guess)
        if guess_epsilon <= target:
            high, high_epsilon = guess, guess_epsilon
        else:
            low, low_epsilon = guess, guess_epsilon
    return high


def _between(low: float, low_epsilon: float, high: float, high_epsilon: float, target: float) -> float:
    """Return the next guess by linear interpolation of the logarithms, or half of `high` without a bound."""
    if low <= 0 or not math.isfinite(low_epsilon):
        return high / 2
    slope = math.log(low_epsilon / high_epsilon) / math.log(high / low)
    # Aim inside the tolerance, so that the guess rarely falls on the wrong side of the target.
    guess: float = high * (high_epsilon / (target * (1 - EPSILON_TOLERANCE / 2))) ** (1 / slope)
    margin = 0.02 * (high - low)
    return min(max(guess, low + margin), high - margin)
