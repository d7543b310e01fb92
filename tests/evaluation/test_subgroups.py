"""Gaps are found where they were put, and small groups are suppressed together with another one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.subgroups import subgroups

sys.path.insert(0, str(Path(__file__).parent))
from case_rows import case, survivors


def people(values, sexes):
    return [
        case("federated", str(i), float(v), sex=s) for i, (v, s) in enumerate(zip(values, sexes, strict=True))
    ]


def test_a_gap_that_was_put_in_is_found():
    generator = np.random.default_rng(6)
    sexes = ["F"] * 20 + ["M"] * 20
    values = np.r_[generator.normal(0.8, 0.05, 20), generator.normal(0.6, 0.05, 20)]
    rows = {
        (r.group, r.against): r
        for r in subgroups(people(values, sexes), SummarySettings(round=1, seed=0, draws=300))
    }
    gap = rows["sex=F", "the others"]
    assert gap.value == pytest.approx(values[:20].mean() - values[20:].mean())
    assert gap.low < 0.2 < gap.high
    assert gap.p < 0.01
    assert rows["sex=F", None].value == pytest.approx(values[:20].mean())
    assert rows["sex=F", None].n == 20


def test_small_groups_are_hidden_with_their_complement():
    rows = subgroups(
        people(np.linspace(0.5, 0.9, 20), ["F"] * 3 + ["M"] * 17), SummarySettings(round=1, seed=0, draws=100)
    )
    assert {row.group for row in rows} == {"sex=F", "sex=M"}
    assert all(row.value is None and row.n is None for row in rows)


def test_gap_tests_reject_as_often_as_they_say():
    generator = np.random.default_rng(7)
    sexes = ["F"] * 15 + ["M"] * 15
    p_values = [
        next(
            r.p
            for r in subgroups(
                people(generator.random(30), sexes), SummarySettings(round=1, seed=run, draws=50)
            )
            if r.p
        )
        for run in range(120)
    ]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10


def test_a_group_with_few_of_an_outcome_has_no_auroc_and_no_c_index():
    generator = np.random.default_rng(1)
    ill = np.arange(40) % 2 == 0
    ill[30:] = np.arange(10) < 3  # three of the ten women
    sex = ["M"] * 30 + ["F"] * 10
    score = 0.6 * generator.random(40) + 0.4 * ill
    cases = [
        case("federated", str(i), float(p), structure="disease", metric="probability", target=float(y), sex=s)
        for i, (p, y, s) in enumerate(zip(score, ill, sex, strict=True))
    ]
    rows = {
        (r.group, r.against): r
        for r in subgroups(cases, SummarySettings(round=1, seed=0, min_patients=4, draws=50))
    }
    assert rows["sex=F", None].value is None
    assert rows["sex=F", None].note == "fewer than 4 patients with or without the class"
    assert rows["sex=M", None].value is not None
    assert ("sex=M", "the others") not in rows  # the others are those women
    died = survivors("federated", score, np.arange(1, 41), ill, groups=sex)
    rows = {
        (r.group, r.against): r
        for r in subgroups(died, SummarySettings(round=1, seed=0, min_patients=4, draws=50))
    }
    assert rows["sex=F", None].note == "fewer than 4 patients with an event"
    assert rows["sex=M", None].metric == "c_index"
    three = {
        (r.group, r.against): r
        for r in subgroups(died, SummarySettings(round=1, seed=0, min_patients=3, draws=50))
    }
    assert three["sex=F", "the others"].value is not None


def test_of_two_groups_each_gap_is_the_others_with_the_other_sign():
    """Women minus men and men minus women are one question: bounds mirror each other, and p is one."""
    generator = np.random.default_rng(4)
    values = np.clip(generator.normal(0.7, 0.15, 30), 0, 1)
    rows = subgroups(people(values, ["F"] * 13 + ["M"] * 17), SummarySettings(round=1, seed=0))
    first, second = (row for row in rows if row.against is not None)
    assert {first.group, second.group} == {"sex=F", "sex=M"}
    assert first.value == pytest.approx(-second.value)
    assert (first.low, first.high) == pytest.approx((-second.high, -second.low))
    assert first.p == second.p


def holm_of(sexes, bands):
    values = np.random.default_rng(4).permutation(np.linspace(0.1, 0.9, len(sexes)))
    cases = [
        case("federated", str(i), float(v), sex=sex, age_band=band)
        for i, (v, sex, band) in enumerate(zip(values, sexes, bands, strict=True))
    ]
    rows = subgroups(cases, SummarySettings(round=1, seed=0, draws=100))
    return {row.group: row for row in rows if row.against is not None}


def test_two_halves_are_one_test_of_holms_and_three_groups_are_three():
    """Women against men and men against women are one hypothesis: 1 of 4 tests beside three bands of ages."""
    gaps = holm_of(["F", "M"] * 18, ["20-39"] * 12 + ["40-59"] * 12 + ["60-79"] * 12)
    assert len(gaps) == 5
    assert {row.method.rpartition(", ")[2] for row in gaps.values()} == {"Holm over 4 tests"}
    distinct = sorted(
        {row.group.partition("=")[0] == "sex" or row.group: row.p for row in gaps.values()}.values()
    )
    # By hand: the least of four is multiplied by 4.
    assert min(row.p_holm for row in gaps.values()) == pytest.approx(min(1.0, 4 * distinct[0]))
    assert gaps["sex=F"].p_holm == gaps["sex=M"].p_holm
