"""The contracts of medfed.testing pass a correct third-party kind and name each fault of others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from contract import CHECKS_OF_EVERY_KIND, broken
from torch import Tensor

from medfed.aggregation import Merged, Rule, State, shares, validated_updates
from medfed.aggregation.fedavg import FedAvg
from medfed.data.normalise import Normalise
from medfed.models.losses import Loss
from medfed.registry import FOLDERS
from medfed.testing import CONTRACTS, NotApplicable, check_loss, check_normalise, check_rule
from medfed.testing._contract import Contract, raises
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class Plain(Rule, frozen=True, tag="plain"):
    """A naive FedAvg: in order of arrival, in float32, and in place."""

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> Merged:
        arrived = list(updates)
        new = dict(weights)
        for update, share in zip(arrived, shares(arrived), strict=True):
            for name, tensor in new.items():
                tensor += share * update.delta[name].float()
        return new, state


class Greedy(Rule, frozen=True, tag="greedy"):
    """A rule that uses only the first site but declares that a sum is enough."""

    supports_secure_aggregation = True

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> Merged:
        first = validated_updates(updates)[0]
        return {
            name: (t.double() + first.delta[name].double()).to(t.dtype) for name, t in weights.items()
        }, {}


class Constant(Loss, frozen=True, tag="constant"):
    """A loss that never decreases."""

    serves = ("classify",)

    def build(self, classes: int):
        return lambda logits, target: 0 * logits.sum() + 1

    def outputs(self, classes: int) -> int:
        return classes


def test_a_rule_of_medfed_passes() -> None:
    check_rule(FedAvg())


def test_a_naive_rule_is_told_what_it_breaks() -> None:
    with pytest.raises(AssertionError, match=r"Plain\(\) breaks \d+ promises of a rule:") as caught:
        check_rule(Plain())
    for name in ("order_of_arrival_changes_no_bit", "no_input_is_changed", "no_update_is_an_error"):
        assert f"\n  {name}: " in str(caught.value)
    assert "\n  names_shapes_and_dtypes_stay" not in str(caught.value)


def test_a_rule_that_wrongly_takes_a_sum_is_found_out() -> None:
    (name,) = (name for name in check_rule.checks if name.endswith("merges_the_sum_as_the_single_updates"))
    with pytest.raises(AssertionError, match="not close"):
        check_rule.checks[name](Greedy())


def test_a_loss_that_does_not_learn_is_found_out() -> None:
    with pytest.raises(
        AssertionError, match="following_its_gradient_makes_it_smaller: AssertionError: classify"
    ):
        check_loss(Constant())


class Undocumented(Normalise, frozen=True, tag="undocumented"):
    function: Any = print

    def channel(self, voxels):
        return voxels


def test_a_kind_that_no_study_file_can_hold_is_named() -> None:
    assert broken(check_normalise, Undocumented()) == CHECKS_OF_EVERY_KIND


def test_every_registry_has_a_contract() -> None:
    assert list(CONTRACTS) == list(FOLDERS)


contract: Contract[Tensor] = Contract("tensor")


@contract.check
def it_is_positive(tensor: Tensor) -> None:
    if tensor.numel() == 0:
        raise NotApplicable("it has no value")
    assert bool((tensor > 0).all()), "a value is not above 0"


@contract.check
def it_is_finite(tensor: Tensor) -> None:
    assert bool(torch.isfinite(tensor).all()), "a value is not finite"


def test_all_failures_are_reported_at_once_unless_skipped() -> None:
    contract(torch.ones(2))
    contract(torch.zeros(0))
    contract(torch.zeros(1), skip=["it_is_positive"])
    with pytest.raises(AssertionError, match=r"breaks 2 promises of a tensor:\n.*not above 0\n.*not finite"):
        contract(-torch.ones(1) / 0)
    with pytest.raises(ValueError, match="no check 'it_is_round'; there are it_is_positive, it_is_finite"):
        contract(torch.ones(1), skip=["it_is_round"])


def test_an_error_that_is_not_raised_or_says_something_else_fails() -> None:
    def nothing_raised() -> None:
        with raises(ValueError, "words"):
            pass

    def other_words() -> None:
        with raises(ValueError, "words"):
            raise ValueError("else")

    with raises(ValueError, "words"):
        raise ValueError("these words")
    with pytest.raises(AssertionError, match="but nothing was raised"):
        nothing_raised()
    with pytest.raises(AssertionError, match="expected an error matching 'words', found: else"):
        other_words()
