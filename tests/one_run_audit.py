"""A lower bound on epsilon from one training run with many canaries.

Steinke, Nasr, Jagielski: Privacy Auditing with One (1) Training Run, NeurIPS 2023, arXiv:2305.08846.
"""

from __future__ import annotations

import math

from scipy.stats import binom

# A bound that is too high with at most this probability.
ERROR = 0.01


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return the largest chance of so many correct guesses under (epsilon, delta)-DP (theorem 5.2).

    Each canary is in the training with probability 1/2. f is the tail of a binomial of `guesses` with
    probability e^epsilon / (1 + e^epsilon); delta adds 2 canaries delta max_i (f(v - i) - f(v)) / i.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    between, most = 0.0, 0.0
    for i in range(1, correct + 1):
        between += float(binom.pmf(correct - i, guesses, chance))
        most = max(most, between / i)
    return min(1.0, tail + 2 * canaries * delta * most)


def lower_bound(canaries: int, guesses: int, correct: int, delta: float) -> float:
    """Return the largest epsilon that the guesses refute; 0 if they refute none."""
    low, high = 0.0, 20.0
    if p_value(canaries, guesses, correct, low, delta) > ERROR:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= ERROR:
            low = middle
        else:
            high = middle
    return low
