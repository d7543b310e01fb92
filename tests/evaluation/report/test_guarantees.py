"""The guarantees in words: what, at which threshold, on how many patients, and whether it held."""

from __future__ import annotations

import pytest

from medfed.evaluation.report.guarantees import guarantees
from medfed.runs.facts import RunFacts

from .result_rows import result, run_of

STUDY = {"evaluation": {"guarantee": 0.9, "confidence": 0.95}}


def tables(*rows, **facts):
    return guarantees(run_of(RunFacts(**facts), STUDY, rows))


def threshold(value, site="north", kind="found", **more):
    return result(value, site=site, metric=f"guarantee_{kind}", split="val", structure="lesion", **more)


def test_a_table_has_each_hospital_then_the_pooled_and_the_least_threshold():
    held = result(0.8, metric="held_found", structure="lesion", low=0.6, high=0.9, n=20)
    rows = [threshold(0.2, "each hospital"), threshold(0.5, "all"), threshold(0.3, n=40), held]
    (table,) = tables(*rows, threshold(None, "south", n=12, note="no guarantee: 12 validation patients"))
    assert table["what"] == "In at least 90 % of patients with lesion it is found, with 95 % confidence"
    assert [line["site"] for line in table["lines"]] == [
        "north",
        "south",
        "all patients pooled",
        "each hospital: the least of their thresholds",
    ]
    north, south = table["lines"][:2]
    assert (north["threshold"], north["n"], north["held"]) == ("0.30", 40, "0.800 (0.600 to 0.900) of 20")
    assert (south["threshold"], south["why"]) == ("–", "no guarantee: 12 validation patients")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("covered", "of patients with lesion at least 90 % of its voxels are found, with 95 % confidence"),
        ("sensitivity", "of those who have it lesion is called, with 95 % confidence"),
        ("set", "of patients the classes above the threshold hold the true one, on average"),
    ],
)
def test_each_guarantee_says_what_it_is_of(kind, words):
    assert tables(threshold(0.5, kind=kind))[0]["what"] == f"In at least 90 % {words}"


def test_without_guarantees_there_is_no_section():
    assert tables(result(0.8)) == []


def test_where_no_hospital_has_a_threshold_one_sentence_says_why():
    few = "no guarantee: fewer than 5 validation patients, 29 are needed"
    rows = [threshold(None, site, note=few) for site in ("south", "north")]
    rows += [threshold(None, "west", note="no guarantee: 9 of 40"), threshold(None, "all", note="no")]
    (table,) = tables(*rows)
    assert table["nowhere"] == (
        "north, south: fewer than 5 validation patients, 29 are needed; west: 9 of 40."
    )
    assert tables(threshold(0.3), *rows)[0]["nowhere"] == ""
