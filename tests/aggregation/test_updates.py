"""What every rule checks of a round's updates: order, examples, numbers, and how many sites answered."""

from __future__ import annotations

import pytest
import torch

from medfed.aggregation._updates import (
    describe,
    newest_round,
    participation,
    require_sites,
    required_scalar,
    shares,
    validated_updates,
)
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import RuleError
from medfed.wire.update import Update


def update(site: str, examples: int = 3, round: int = 2, **scalars: float) -> Update:
    return Update(site, round, {"w": torch.zeros(1)}, examples, scalars)


def test_updates_are_sorted_by_site_and_those_of_no_example_left_out():
    updates = [update("south"), update("west", 0), update("north", 1)]
    assert [one.site for one in validated_updates(iter(updates))] == ["north", "south"]


@pytest.mark.parametrize(
    "updates, message",
    [
        ([], "there is no update to merge: no site answered this round"),
        ([update("a", 0), update("b", 0)], "the 2 updates of this round have 0 examples together"),
        ([update("a", -1), update("b")], "update of site 'a' for round 2 states -1 examples"),
        (
            [update("a"), update("b"), update("a")],
            "two updates of site 'a' for round 2; only one per site can",
        ),
        (
            [update("a", round=1), update("a", round=2)],
            "two updates of site 'a' for round 1; only one per site",
        ),
    ],
)
def test_updates_that_no_rule_can_merge_are_refused(updates, message):
    with pytest.raises(RuleError, match=message):
        validated_updates(updates)


def test_an_asynchronous_rule_takes_a_sites_updates_of_different_rounds():
    updates = [update("a", round=2), update("a", round=1)]
    assert [one.round for one in validated_updates(updates, asynchronous=True)] == [1, 2]
    with pytest.raises(RuleError, match="two updates of site 'a' for round 2; only one per site and round"):
        validated_updates([update("a"), update("a")], asynchronous=True)


def test_shares_are_of_the_sites_that_answered():
    assert shares([update("a", 1), update("b", 3)]) == [0.25, 0.75]
    with pytest.raises(RuleError, match="the 1 updates of this round have 0 examples together"):
        shares([update("a", 0)])


def test_participation_is_the_share_of_the_studys_sites():
    sites = [update("a"), update("b")]
    assert participation(sites, None, FedAvg()) == 1.0
    assert participation(sites, 8, FedAvg()) == 0.25
    with pytest.raises(RuleError, match=r"fedavg for round 2: 2 sites answered, but rule\.sites is 1"):
        participation(sites, 1, FedAvg())


def test_too_few_sites_are_refused_with_the_reason():
    sites = [update("a"), update("b", round=5)]
    require_sites(sites, 2, FedAvg(), "2 f + 3")
    with pytest.raises(RuleError, match=r"fedavg for round 5: 2 sites answered, at least 3 are needed \(2 f"):
        require_sites(sites, 3, FedAvg(), "2 f + 3")
    assert newest_round(sites) == 5
    assert describe(sites[1]) == "update of site 'b' for round 5"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_needed_must_be_finite(value):
    assert required_scalar(update("a", loss=2.0), "loss", "weighs it") == 2.0
    broken = update("a") if value is None else update("a", loss=value)
    with pytest.raises(RuleError, match="update of site 'a' for round 2 has no finite scalar 'loss', which"):
        required_scalar(broken, "loss", "weighs it")
