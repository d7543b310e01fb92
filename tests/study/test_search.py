"""The `search:` section: its rungs, its ranges, and what it refuses, each by its message."""

from __future__ import annotations

import math
from typing import Any

import pytest

from medfed.study.search import Range, Search

ROUNDS = 6
LIST = {"train.batch": (4, 8)}


def problems(space: dict[str, Any], **settings: int) -> str:
    return "\n".join(Search(space=space, **{"rounds": 30, **settings}).problems(ROUNDS))


@pytest.mark.parametrize(
    ("rounds", "reduction", "least", "expected"),
    [
        (90, 3, None, 10),  # 90 / 3 / 3
        (10, 3, None, 2),  # 10 / 9 is 1.1, and no trial is stopped before it
        (9, 3, None, 1),
        (1, 2, None, 1),
        (90, 3, 4, 4),
    ],
)
def test_the_first_rung_is_the_rounds_divided_twice(
    rounds: int, reduction: int, least: int | None, expected: int
) -> None:
    search = Search(space=LIST, rounds=900, least=least, reduction=reduction)
    assert search.first_rung(rounds) == expected


@pytest.mark.parametrize(("low", "high", "whole"), [(1, 8, True), (1.0, 8, False), (1, 8.0, False)])
def test_whole_numbers_are_meant_if_both_ends_are(low: float, high: float, whole: bool) -> None:
    assert Range(low=low, high=high).is_whole is whole


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (Range(low=0.1, high=0.2), ""),
        (Range(low=-1, high=1), ""),
        (Range(low=1, high=1), "low is 1 and high is 1; low must be below high"),
        (Range(low=2.0, high=1.0), "low is 2 and high is 1; low must be below high"),
        (Range(low=0, high=1, log=True), "log needs low above 0, found 0"),
        (Range(low=0.0, high=math.inf), "low is 0 and high is inf; both must be numbers with an end"),
        (Range(low=math.nan, high=1.0), "low is nan and high is 1; both must be numbers with an end"),
    ],
)
def test_a_range_with_nothing_in_it_says_why(values: Range, message: str) -> None:
    assert values.problem() == message


def test_a_sound_search_has_no_problem() -> None:
    space = {"train.optimiser.lr": Range(low=0.001, high=0.1, log=True), "rule": ("a", "b"), **LIST}
    assert problems(space, rounds=ROUNDS, least=ROUNDS) == ""


@pytest.mark.parametrize(
    "key",
    ["data.fractions", "train", "train.rounds", "train.keep", "train.patience", "train.keep_local",
     "train.last_rounds_on_all", "train.only", "train.lora.rank",
     "seed", "task.classes", "sites", "networks", "rules.kind"],
)  # fmt: skip
def test_what_decides_how_trials_compare_is_not_searched(key: str) -> None:
    assert f"'{key}' cannot be searched; what can is below train, rule, network, task.loss" in problems(
        {key: (1, 2)}
    )


def test_a_key_is_not_searched_together_with_one_in_it() -> None:
    """Overrides apply one after the other, so the whole would undo the part without a word."""
    space = {
        "train.optimiser.lr": Range(low=0.1, high=0.2),
        "train.optimiser": ({"kind": "sgd"}, {"kind": "adam"}),
    }
    assert "'train.optimiser' is searched as a whole, and so is 'train.optimiser.lr' in it" in problems(space)
    assert problems({"train.batch": (1, 2), "train.batches": (1, 2)}) == ""


@pytest.mark.parametrize("values", [(), (4,), (4, 4), ([1], [2], [1])])
def test_a_list_has_two_values_each_once(values: tuple[Any, ...]) -> None:
    assert f"'train.batch' lists {len(values)} values; give at least two, each once" in problems(
        {"train.batch": values}
    )


def test_a_budget_below_one_trial_and_a_rung_beyond_it_are_refused() -> None:
    assert "5 rounds are fewer than one trial's 6 (train.rounds)" in problems(LIST, rounds=5)
    assert "search.least: 7 is more than the study's 6 rounds" in problems(LIST, least=7)
