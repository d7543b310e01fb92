"""Numbers, models, hospitals, times and rounds as a reader sees them."""

from __future__ import annotations

import pytest

from medfed.evaluation.intervals import TOO_NARROW
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.report.formatting import (
    column_slices,
    duration,
    interval,
    is_narrow,
    is_small_sample,
    metric_title,
    model_name,
    number,
    p_value,
    round_ranges,
    shown_values,
    site_name,
)

from .result_rows import result


def test_a_share_has_two_decimals_and_a_difference_three():
    # A difference has three decimals: with two, both ends of a narrow interval would be the same number.
    assert number(-0.0001, metric_of("dice"), sign=True) == "0.000"
    assert number(-0.12, metric_of("dice"), sign=True) == "−0.120"
    assert number(0.8449, metric_of("dice")) == "0.84"
    assert number(0.8449, metric_of("dice"), fine=True) == "0.845"
    assert number(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.1234, "0.12"), (1.234, "1.23"), (12.345, "12.3"), (123.4, "123"), (1234.5, "1234")],
)
def test_a_distance_has_about_three_digits(value, text):
    assert number(value, metric_of("hd95_mm")) == text


def test_an_interval_is_written_with_its_metrics_decimals():
    row = result(0.8, low=0.7512, high=0.8488)
    assert interval(row) == "0.75 to 0.85"
    assert interval(row, fine=True) == "0.751 to 0.849"
    assert interval(result(-0.1, low=-0.2, high=0.05), sign=True) == "−0.200 to +0.050"
    assert interval(result(0.8)) == interval(result(0.8, low=0.7)) == ""


def test_an_interval_of_less_than_five_hundredths_is_narrow():
    assert is_narrow(result(0.8, low=0.78, high=0.82))
    assert not is_narrow(result(0.8, low=0.75, high=0.85))
    assert not is_narrow(result(0.8))
    assert not is_narrow(None)


def test_only_a_shown_interval_can_be_of_too_few_patients():
    few = {"note": f"of 4 patients, {TOO_NARROW}"}
    assert is_small_sample(result(0.8, low=0.7, high=0.9, **few))
    assert not is_small_sample(result(0.8, **few))
    assert not is_small_sample(result(0.8, low=0.7, high=0.9))


def test_models_hospitals_and_metrics_are_named_for_readers():
    names = ["federated", "pooled", "untrained", "local:north", "without:north", "personal:north", "fedadam"]
    assert [model_name(name) for name in names] == [
        "Federated", "Pooled", "Untrained", "north alone", "federated without north",
        "personalised for north", "fedadam",
    ]  # fmt: skip
    assert (site_name("all"), site_name("north")) == ("all hospitals of the study", "north")
    assert metric_title("dice", "days") == "Dice"
    assert metric_title("brier@365", "days") == f"{metric_of('brier@365').title} (days)"


def test_p_values_have_as_many_digits_as_they_decide():
    assert [p_value(p) for p in (0.0004, 0.0123, 0.0999, 0.1, 0.4)] == [
        "< 0.001", "0.012", "0.100", "0.10", "0.40",
    ]  # fmt: skip


def test_durations_are_in_the_unit_that_fits():
    assert [duration(s) for s in (89.4, 90, 5399, 5400)] == ["89 s", "2 min", "90 min", "1.5 h"]


def test_consecutive_rounds_are_joined():
    assert round_ranges([5, 3, 4, 9]) == "rounds 3 to 5, 9"
    assert round_ranges([7]) == "round 7"


def test_a_list_of_settings_is_shown_as_its_elements():
    assert [shown_values(value) for value in ([2.0, 1.5], [], "sgd", 0)] == ["2.0, 1.5", "none", "sgd", "0"]


def test_a_wide_table_is_given_in_parts_of_even_width():
    assert column_slices(list(range(7))) == [slice(0, 7)]
    assert column_slices(list(range(8))) == [slice(0, 4), slice(4, 8)]
    assert [part.stop - part.start for part in column_slices(list(range(15)))] == [5, 5, 5]
    assert column_slices([]) == [slice(0, 0)]
