"""Differences are paired by patient, tested, and corrected together within a hospital."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from medfed.evaluation import survival
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.paired_tests import sign_flip
from medfed.evaluation.patients import SummarySettings

sys.path.insert(0, str(Path(__file__).parent))
from case_rows import case, survivors


def test_a_difference_is_paired():
    # The patients differ by far more than the models: unpaired, nothing could be told.
    level = np.random.default_rng(2).random(12)
    cases = [case("federated", str(i), float(v) * 0.8 + 0.05) for i, v in enumerate(level)]
    cases += [case("local:north", str(i), float(v) * 0.8) for i, v in enumerate(level)]
    (row,) = compare(cases, SummarySettings(round=1, seed=0, min_patients=1, draws=200))
    assert (row.model, row.against) == ("federated", "local:north")
    assert row.value == pytest.approx(0.05)
    assert row.p == pytest.approx(2 / 2**12)


def test_patients_that_only_one_model_saw_are_not_compared():
    cases = [case("federated", str(i), 0.5 + i / 100) for i in range(8)]
    cases += [case("pooled", str(i), 0.4) for i in range(2, 12)]
    (row,) = compare(cases, SummarySettings(round=1, seed=0, min_patients=1, draws=200))
    assert row.n == 6
    assert row.value == pytest.approx(np.mean([0.1 + i / 100 for i in range(2, 8)]))


def test_p_values_of_one_metric_are_corrected_together_and_the_untrained_model_is_not_tested():
    generator = np.random.default_rng(3)
    models = ["federated", "local:a", "local:b", "untrained"]
    cases = [case(m, str(i), float(generator.random())) for m in models for i in range(9)]
    rows = {
        row.against: row
        for row in compare(cases, SummarySettings(round=1, seed=0, min_patients=1, draws=100))
    }
    assert rows["untrained"].p is None
    assert "Holm over 2 tests" in rows["local:a"].method
    ours = np.array([c.value for c in cases if c.model == "federated"])
    raw = {
        m: sign_flip(ours - np.array([c.value for c in cases if c.model == m]), 0)
        for m in ("local:a", "local:b")
    }
    # The p beside an interval is of that comparison alone, as the interval is.
    assert {m: rows[m].p for m in raw} == pytest.approx(raw)
    assert min(rows[m].p_holm for m in raw) == pytest.approx(min(1.0, 2 * min(raw.values())))
    assert rows["untrained"].p_holm is None


def test_a_pair_without_a_value_is_left_out_and_counted():
    cases = [case("federated", str(i), 0.5 if i else None) for i in range(6)]
    cases += [case("pooled", str(i), 0.3 + i / 50) for i in range(6)]
    (row,) = compare(cases, SummarySettings(round=1, seed=0, min_patients=1, draws=100))
    assert row.n == 5
    assert "1 patient without a pair left out" in row.note


def test_aurocs_are_compared_by_delong():
    from medfed.evaluation.classification import delong_test

    generator = np.random.default_rng(5)
    y = generator.random(60) < 0.5
    p, q = np.clip(0.5 * y + 0.5 * generator.random(60), 0, 1), generator.random(60)
    cases = [
        case(model, str(i), float(v), structure="disease", metric="probability", target=float(y[i]))
        for model, values in (("federated", p), ("local:north", q))
        for i, v in enumerate(values)
    ]
    rows = {row.metric: row for row in compare(cases, SummarySettings(round=1, seed=0, draws=100))}
    interval, p_value = delong_test(p, q, y)
    assert rows["auroc"].value == pytest.approx(interval.value)
    assert rows["auroc"].p == pytest.approx(p_value)
    assert rows["brier"].value == pytest.approx(np.mean((p - y) ** 2) - np.mean((q - y) ** 2))


def test_a_hidden_site_is_in_no_comparison():
    cases = [case(m, f"{s}{i}", i / 20, site=s) for m in ("federated", "pooled") for s, n in
             (("north", 3), ("south", 8), ("east", 9)) for i in range(n)]  # fmt: skip
    sites = {row.site for row in compare(cases, SummarySettings(round=1, seed=0, draws=100, min_patients=5))}
    assert sites == {"east", "all"}


def test_inventions_cost_specificity_and_the_dice_is_of_the_same_patients_for_both():
    """Both models' Dice and their difference are of the six patients with a lesion, so the three subtract."""
    ours = [case("federated", str(i), 0.8) for i in range(6)] + [
        case("federated", "x", 0.0, note="false positive")
    ]
    theirs = [case("pooled", str(i), 0.7) for i in range(6)] + [
        case("pooled", "x", None, note="absent in both")
    ]
    both = [case(model, "y", None, note="absent in both") for model in ("federated", "pooled")]
    cases, settings = [*ours, *theirs, *both], SummarySettings(round=1, seed=0, min_patients=1, draws=100)
    rows = {row.metric: row for row in compare(cases, settings)}
    assert set(rows) == {"dice", "rightly_empty"}
    assert (rows["dice"].value, rows["dice"].n) == (pytest.approx(0.1), 6)
    # Of x and y without a lesion, ours left one empty and theirs both.
    assert (rows["rightly_empty"].value, rows["rightly_empty"].n) == (-0.5, 2)
    means = {row.model: row for row in aggregate(cases, settings) if row.metric == "dice"}
    assert means["federated"].value - means["pooled"].value == pytest.approx(rows["dice"].value)
    assert {row.n for row in means.values()} == {6}


def test_a_hospital_is_a_family_of_its_own():
    generator = np.random.default_rng(3)
    models = ["federated", "local:a", "local:b"]
    cases = [
        case(m, f"{s}{i}", float(generator.random()), site=s)
        for m in models
        for s in ("a", "b")
        for i in range(9)
    ]
    comparison = compare(cases, SummarySettings(round=1, seed=0, min_patients=1, draws=100))
    assert {row.site for row in comparison} == {"a", "b", "all"}
    assert all("Holm over 2 tests" in row.method for row in comparison)


def test_models_of_survival_are_compared_by_c_index_and_brier_score():
    generator = np.random.default_rng(0)
    risks = generator.normal(0, 1, 60)
    times, events = generator.exponential(np.exp(-risks)) + 0.01, generator.random(60) < 0.8
    flat, good = np.full(60, 0.5), {at: np.exp(-at * np.exp(risks)) for at in (0.3, 0.8)}
    cases = survivors("federated", risks, times, events, curve=good)
    cases += survivors("pooled", -risks, times, events, curve=dict.fromkeys((0.3, 0.8), flat))
    result = {row.metric: row for row in compare(cases, SummarySettings(round=1, seed=0, draws=200))}
    assert set(result) == {"c_index", "integrated_brier"}
    # The pooled model ranks the other way round: what one gets right the other gets wrong.
    ours = float(survival.c_index_of(risks, times, events)(np.ones((1, 60)))[0])
    assert result["c_index"].value == pytest.approx(2 * ours - 1)
    assert result["c_index"].p < 0.01
    assert result["c_index"].method.endswith("jackknife z, Holm over 1 tests")
    expected = survival.integrated_terms(good, times, events) - survival.integrated_terms(
        dict.fromkeys((0.3, 0.8), flat), times, events
    )
    assert result["integrated_brier"].value == pytest.approx(expected.mean())
    assert result["integrated_brier"].low < expected.mean() < result["integrated_brier"].high
    few = [event and i < 5 for i, event in enumerate(events)]
    rare = survivors("federated", risks, times, few) + survivors("pooled", -risks, times, few)
    assert compare(rare, SummarySettings(round=1, seed=0, min_patients=6, draws=20)) == []
