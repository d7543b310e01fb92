"""Which updates of a round are too long to come from training; and which differ from the model.

The numbers are by hand.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from medfed.errors import UpdateError
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, Update, check_update, outlier_errors
from medfed.wire.weights import Difference

# 100 weights of 3 give a model of norm 30. An update of n / 10 at each weight has norm n.
WEIGHTS = {"a": torch.full((100,), 3.0)}


def of_length(site: str, length: float) -> Update:
    return Update(site, 3, {"a": torch.full((100,), length / 10, dtype=torch.float64)}, 5)


def outliers(*lengths: float, weights=WEIGHTS, times: float = DEFAULT_OUTLIER_FACTOR) -> list[int]:
    """Return which updates of these norms are refused."""
    sent = [of_length(f"s{number}", length) for number, length in enumerate(lengths)]
    return [number for number, why in enumerate(outlier_errors(sent, weights, times)) if why is not None]


@pytest.mark.parametrize(
    "lengths, expected",
    [
        ((1, 2, 1e6), [2]),
        ((1, 2, 3e6, 1e6, 2), [2, 3]),
        # 1,000 times the median of 1, 2 and the long one is 2,000.
        ((1, 2, 1999.9), []),
        ((1, 2, 2000.1), [2]),
        # Of an even number of updates, the lower middle one counts, so one of two sites cannot
        # raise the limit.
        ((1, 1e6), [1]),
        ((1e6, 1), [0]),
        # Two tiny updates do not make an honest one too long: up to 10 times the model, 300,
        # all are accepted.
        ((1e-9, 1e-9, 299), []),
        ((0, 0, 301), [2]),
        # A single update is compared with the model: 1,000 times 30.
        ((29_999,), []),
        ((30_001,), [0]),
    ],
)
def test_which_lengths_are_refused_by_hand(lengths, expected):
    assert outliers(*lengths) == expected


def test_a_model_of_zeros_counts_as_one_of_tenths():
    zeros = {"a": torch.zeros(100)}  # 100 weights of 0.1 have norm 1, and 10 times that is always allowed
    assert outliers(0, 0, 9.9, weights=zeros) == []
    assert outliers(0, 0, 10.1, weights=zeros) == [2]
    assert outliers(999, weights=zeros) == []
    assert outliers(1001, weights=zeros) == [0]


def test_it_does_not_depend_on_who_comes_first():
    lengths = (1, 2, 3, 1e6, 1e7)
    for order in itertools.permutations(range(5)):
        refused = outliers(*(lengths[number] for number in order))
        assert {lengths[order[number]] for number in refused} == {1e6, 1e7}


def test_the_reason_names_who_what_and_the_setting():
    (_, _, why) = outlier_errors(
        [of_length("a", 1), of_length("b", 2), of_length("north", 1e6)], WEIGHTS, 1000
    )
    assert str(why).startswith(
        "update of site 'north' for round 3: its norm is 1e+06, the median of this round's 2; more than "
        "2e+03 is not from "
        "training (sampling.outlier)"
    )


def test_numbers_that_overflow_a_norm_are_outliers():
    huge = Update("north", 3, {"a": torch.full((100,), 1e200, dtype=torch.float64)}, 5)
    (_, _, why) = outlier_errors([of_length("a", 1), of_length("b", 2), huge], WEIGHTS, 1000)
    assert "its norm is inf" in str(why)


@pytest.mark.parametrize(
    "delta, examples, message",
    [
        ({}, 5, "'a' is missing; the global model has it"),
        ({"a": torch.ones(100), "b": torch.ones(1)}, 5, "'b' is not in the global model"),
        ({"a": torch.ones(99)}, 5, r"'a' has shape \(99,\), the global model has \(100,\)"),
        ({"a": torch.ones(100, dtype=torch.int64)}, 5, "'a' has dtype torch.int64"),
        ({"a": torch.full((100,), torch.nan)}, 5, "'a' has 100 of 100 values that are not finite"),
        ({"a": torch.ones(100)}, 0, "trained on 0 examples"),
    ],
)
def test_what_does_not_match_the_model_is_refused(delta, examples, message):
    with pytest.raises(UpdateError, match=f"update of site 'north' for round 3: {message}"):
        check_update(Update("north", 3, delta, examples), WEIGHTS)


def difference(*values: float, norm: float | None = None) -> Update:
    model = {"a": torch.tensor([1.0, 1.0])}
    return Update("s", 3, Difference({"a": torch.tensor(values).float()}, model, norm), 5)


def test_a_checked_difference_has_its_norm_by_hand():
    sent = difference(4, 5)  # apart by 3 and 4
    assert check_update(sent, {"a": torch.ones(2)}).delta.norm == pytest.approx(5)
    assert sent.delta.norm is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_difference_that_is_not_finite_is_refused_by_its_norm(bad):
    with pytest.raises(UpdateError, match="'a' has 1 of 2 values that are not finite"):
        check_update(difference(4, bad), {"a": torch.ones(2)})


def test_a_difference_that_overflows_float32_is_finite():
    checked = check_update(difference(3e38, -3e38), {"a": torch.ones(2)})
    assert checked.delta.norm == pytest.approx(3e38 * 2**0.5)


def test_a_known_norm_is_compared_without_a_second_pass():
    model, long = {"a": torch.ones(2)}, difference(4, 5, norm=1e9)
    assert check_update(long, model) is long
    assert [why is not None for why in outlier_errors([difference(4, 5), long], model, 1000)] == [False, True]
