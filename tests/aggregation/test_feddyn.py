"""FedDyn's hub by hand, where all sites answer, where some do, and for running statistics."""

from __future__ import annotations

import pytest
import torch

from medfed.aggregation.feddyn import FedDyn
from medfed.errors import RuleError
from medfed.wire.update import Update

WEIGHTS = {"w": torch.zeros(1, dtype=torch.float64), "n.running_mean": torch.zeros(1, dtype=torch.float64)}


def update(site: str, delta: float, examples: int) -> Update:
    values = {name: torch.full((1,), delta, dtype=torch.float64) for name in WEIGHTS}
    return Update(site, 1, values, examples)


@pytest.mark.parametrize("sites, share", [(None, 1.0), (4, 0.5)])
def test_two_rounds_by_hand(sites, share):
    rule = FedDyn(sites=sites)
    # Weighted means of the movements: (1 * 2 + 3 * 6) / 4 = 5, then (1 * -2 + 3 * 2) / 4 = 1.
    moved = [5 * share, 5 * share + 1 * share]
    weights, state = rule.merge([update("a", 2, 1), update("b", 6, 3)], rule.init(WEIGHTS), WEIGHTS)
    assert float(weights["w"]) == 0 + 5 + moved[0]
    assert float(state["moved"]["w"]) == moved[0]
    again, state = rule.merge([update("b", 2, 3), update("a", -2, 1)], state, weights)
    assert float(again["w"]) == float(weights["w"]) + 1 + moved[1]
    assert float(state["moved"]["w"]) == moved[1]
    # A running mean is averaged: its movements do not add up.
    assert float(again["n.running_mean"]) == 6.0
    assert set(state["moved"]) == {"w"}


def test_more_sites_than_the_study_has_are_refused():
    rule = FedDyn(sites=1)
    with pytest.raises(RuleError, match=r"2 sites answered, but rule\.sites is 1"):
        rule.merge([update("a", 2, 1), update("b", 6, 3)], rule.init(WEIGHTS), WEIGHTS)


def test_a_sum_is_enough_only_where_all_sites_answer():
    assert FedDyn().supports_secure_aggregation
    assert not FedDyn(sites=4).supports_secure_aggregation
