"""FedBuff, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from one_weight import merged, update

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedbuff import FedBuff
from medfed.errors import RuleError

torch.set_num_threads(1)


def test_fedbuff_by_hand() -> None:
    # Rounds 5 and 2 at merge 5: staleness 0 and 3, factors 1 and 1/2, shares 1/4 and 3/4: 8/4 + 3/4 * 1/2 *
    # 16 = 8.
    assert merged(FedBuff(), update("a", 8, 1, 5), update("b", 16, 3, 2)) == pytest.approx(8.0, rel=1e-14)


def test_fedbuff_takes_two_updates_of_one_site_but_not_twice_the_same() -> None:
    assert merged(FedBuff(staleness_power=0), update("a", 2, 1, 4), update("a", 4, 1, 5)) == 3.0
    with pytest.raises(RuleError, match="two updates of site 'a' for round 4; only one per site and round"):
        merged(FedBuff(), update("a", 2, 1, 4), update("a", 4, 1, 4))


def test_fedbuff_knows_that_a_whole_buffer_is_late() -> None:
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    rule = FedBuff()
    state = rule.init(weights)
    for number in range(4):
        _, state = rule.merge([update("a", 1, 1, number)], state, weights)
    # Merges 0 to 3 are done; an update of round 1 comes in the fourth: staleness 3, factor 1/2.
    new, _ = rule.merge([update("b", 10, 1, 1)], state, weights)
    assert float(new["w"]) == pytest.approx(5.0, rel=1e-14)


def test_fedbuff_of_fresh_updates_is_fedavg() -> None:
    updates = [update("a", 0.1, 3), update("b", 7.3, 4), update("c", -2.0, 9)]
    assert merged(FedBuff(), *updates) == merged(FedAvg(), *updates)
