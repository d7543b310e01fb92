"""Every rule of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import importlib

import pytest
import torch
from contract import checks_of, run

from medfed.aggregation import Rule
from medfed.registry import kinds
from medfed.testing import check_rule

torch.set_num_threads(1)

RULES = kinds("aggregation")

# Rules whose step is not proportional to the updates', because it is normalised by its own size.
NOT_PROPORTIONAL = ("fedadagrad", "fedadam", "fedyogi")


@pytest.fixture(params=sorted(RULES))
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]()  # type: ignore[return-value]


def test_the_folder_holds_fedavg_and_more() -> None:
    assert "fedavg" in RULES
    assert all(issubclass(record, Rule) for record in RULES.values())


@checks_of(check_rule)
def test_it_keeps_the_contract(rule: Rule, check: str) -> None:
    proportional = "updates_times_a_number_move_the_model_that_many_times_as_far"
    if check == proportional and type(rule).__struct_config__.tag in NOT_PROPORTIONAL:
        pytest.skip("the step is normalised by its own size")
    run(check_rule, check, rule)


def test_a_rule_takes_a_secure_sum_only_if_it_says_so() -> None:
    class Careless(Rule, frozen=True, tag="careless"):
        """A rule that says nothing about sums."""

    assert not Careless().supports_secure_aggregation


def test_its_file_cites_a_paper(rule: Rule) -> None:
    text = importlib.import_module(type(rule).__module__).__doc__ or ""
    assert "arXiv:" in text or "doi:" in text
    assert (type(rule).__doc__ or "").strip().endswith(".")
