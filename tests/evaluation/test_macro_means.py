"""The mean of hospitals: each counts alike, from values that may be shown alone."""

from __future__ import annotations

import pytest

from medfed.evaluation.macro_means import macro_means
from medfed.evaluation.rows import SITE_MEAN, Row


def row(site, value, *, n=10, half=None, **more):
    about = {"round": 1, "split": "test", "model": "federated", "metric": "dice", "structure": "lesion"}
    bounds = {} if half is None else {"low": value - half, "high": value + half}
    note = "fewer than 5 patients" if value is None else None
    return Row(**{**about, **bounds, "site": site, "value": value, "n": n, "note": note, **more})


def test_a_hospital_of_ninety_counts_like_one_of_ten():
    (mean,) = macro_means([row("north", 0.9, n=90, half=0.03), row("south", 0.5, half=0.04)], [])
    assert (mean.site, mean.value, mean.n) == (SITE_MEAN, pytest.approx(0.7), 100)
    # Independent errors: half of sqrt(0.03^2 + 0.04^2) = 0.05 on each side.
    assert (mean.low, mean.high) == pytest.approx((0.675, 0.725))
    assert mean.note == "hospitals: 2"


def test_the_interval_ends_where_the_metric_does():
    (mean,) = macro_means([row("north", 0.98, half=0.1), row("south", 0.99, half=0.1)], [])
    assert mean.high == 1.0


def test_a_withheld_hospital_is_no_part_of_it_and_is_told():
    rows = [row("north", 0.9), row("south", 0.5), row("east", None), row("all", 0.1)]
    (mean,) = macro_means(rows, [])
    assert mean.value == pytest.approx(0.7)
    assert (mean.low, mean.note) == (None, "hospitals: 2 of 3; the others have no value to show")


@pytest.mark.parametrize(
    "rows",
    [
        [row("north", 0.9), row("south", None)],
        [row("north", 0.9), row("west", 0.5)],
        [row(site, 3.0, metric="missed") for site in ("north", "south")],
        [row(site, 0.1, metric="brier@12", structure=None) for site in ("north", "south")],
        [row(site, 0.1, against="pooled") for site in ("north", "south")],
        [row(site, 0.1, group="sex=F") for site in ("north", "south")],
    ],
    ids=["one value", "held out", "a count", "times of its own", "a difference", "a subgroup"],
)
def test_there_is_none_of(rows):
    assert macro_means(rows, held_out=["west"]) == []
