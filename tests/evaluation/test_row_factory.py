"""The rows of one group share its fields; a missing value has a note and no method."""

from __future__ import annotations

import pytest

from medfed.evaluation.intervals import Interval
from medfed.evaluation.row_factory import RowFactory, mark_wide
from medfed.evaluation.rows import Row

FACTORY = RowFactory(3, "north", "test", "federated", against="pooled", group="sex=F")


def test_a_row_has_the_groups_fields_and_the_intervals():
    row = FACTORY.row("dice", "liver", Interval(0.8, 0.7, 0.9, 12, "bootstrap", "of 12"), 10, p=0.04)
    assert row == Row(
        round=3, site="north", split="test", model="federated", against="pooled", group="sex=F",
        metric="dice", structure="liver", value=0.8, low=0.7, high=0.9, n=10, p=0.04, method="bootstrap",
        note="of 12",
    )  # fmt: skip


def test_a_suppressed_row_says_why_and_has_neither_value_nor_method():
    row = FACTORY.suppressed("dice", "fewer than 5 patients", structure="liver")
    assert (row.value, row.low, row.high, row.n, row.method) == (None,) * 5
    assert (row.note, row.structure) == ("fewer than 5 patients", "liver")
    missing = FACTORY.row("dice", None, Interval(None, None, None, 4, "bootstrap", "no reference"), 4)
    assert missing.method is None


@pytest.mark.parametrize(
    ("metric", "interval", "note"),
    [
        # Dice reaches from 0 to 1, of which an interval may take less than 0.3.
        ("dice", Interval(0.5, 0.3, 0.7, 9, ""), "wide interval"),
        ("dice", Interval(0.5, 0.4, 0.6, 9, ""), None),
        # A distance has no highest value, so that the interval is held against twice its own value.
        ("hd95_mm", Interval(10.0, 5.0, 15.0, 9, "", "of 4"), "of 4; wide interval"),
        ("hd95_mm", Interval(10.0, 8.0, 12.0, 9, "", "of 4"), "of 4"),
        ("dice", Interval(0.5, None, None, 9, ""), None),
    ],
)
def test_an_interval_that_is_wide_for_its_metric_is_marked(metric, interval, note):
    assert mark_wide(metric, interval) == interval._replace(note=note)
