"""Differences are paired by patient, tests are exact where they can be, gaps are seen where they were put."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medfed.evaluation import survival
from medfed.evaluation.comparisons import compare
from medfed.evaluation.paired_tests import sign_flip
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.subgroups import subgroups


def case(
    model,
    patient,
    value,
    *,
    site="north",
    structure="lesion",
    metric="dice",
    target=None,
    note=None,
    **attributes,
):
    return CaseRow(
        model=model,
        site=site,
        split="test",
        case=patient,
        patient=patient,
        metric=metric,
        value=value,
        structure=structure,
        target=target,
        note=note or ("missing" if value is None else None),
        attributes=attributes,
    )


def test_sign_flips_are_exact_for_few_patients():
    differences = np.random.default_rng(0).normal(0.4, 1, 10)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences, 0) == pytest.approx(expected.pvalue)
    # All five positive: only the observed pattern and its mirror image are as extreme.
    assert sign_flip(np.array([1.0, 2, 3, 4, 5]), 0) == 2 / 32


def test_sign_flips_reject_as_often_as_they_say():
    generator = np.random.default_rng(1)
    rejected = np.mean([sign_flip(generator.normal(0, 1, 20), run) < 0.05 for run in range(300)])
    assert 0.02 <= rejected <= 0.08


def test_flips_of_many_patients_are_normal():
    differences = np.random.default_rng(4).normal(0.1, 1, 400)
    signs = np.random.default_rng(5).choice([-1.0, 1.0], (20_000, 400))
    flipped = np.mean(np.abs(signs @ differences) >= abs(differences.sum()))
    assert sign_flip(differences, 0) == pytest.approx(flipped, abs=0.01)


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
    assert min(rows[m].p for m in raw) == pytest.approx(min(1.0, 2 * min(raw.values())))


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
        / 2
        for run in range(120)
    ]
    # Holm doubled the two p values, which are of the same question: halved, they are the raw ones.
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10


def test_who_alone_saw_that_nothing_is_there_gets_one_against_nought():
    """Left out of the pairs, as a Dice that neither has, the invention would cost nothing."""
    ours = [case("federated", str(i), 0.8) for i in range(6)] + [
        case("federated", "x", 0.0, note="false positive")
    ]
    theirs = [case("pooled", str(i), 0.7) for i in range(6)] + [
        case("pooled", "x", None, note="absent in both")
    ]
    both = [case(model, "y", None, note="absent in both") for model in ("federated", "pooled")]
    (row,) = compare([*ours, *theirs, *both], SummarySettings(round=1, seed=0, min_patients=1, draws=100))
    assert row.value == pytest.approx((6 * 0.1 - 1.0) / 7)
    assert row.n == 7
    assert "1 patient in which only one model correctly predicted nothing" in row.note


def test_a_hospital_is_a_family_of_its_own():
    generator = np.random.default_rng(3)
    models = ["federated", "local:a", "local:b"]
    cases = [
        case(m, f"{s}{i}", float(generator.random()), site=s)
        for m in models
        for s in ("a", "b")
        for i in range(9)
    ]
    found = compare(cases, SummarySettings(round=1, seed=0, min_patients=1, draws=100))
    assert {row.site for row in found} == {"a", "b", "all"}
    assert all("Holm over 2 tests" in row.method for row in found)


def survivors(model, risks, times, events, *, curve=None, groups=None):
    found = []
    for i, (risk, time, event) in enumerate(zip(risks, times, events, strict=True)):
        about = {
            "model": model,
            "site": "north",
            "split": "test",
            "case": str(i),
            "patient": str(i),
            "target": float(time),
            "event": bool(event),
            "attributes": {"sex": groups[i]} if groups else {},
        }
        found.append(CaseRow(metric="risk", value=float(risk), **about))
        for at, chance in (curve or {}).items():
            found.append(CaseRow(metric=f"survival@{at:g}", value=float(chance[i]), **about))
    return found


def test_models_of_survival_are_compared_by_c_index_and_brier_score():
    generator = np.random.default_rng(0)
    risks = generator.normal(0, 1, 60)
    times, events = generator.exponential(np.exp(-risks)) + 0.01, generator.random(60) < 0.8
    flat, good = np.full(60, 0.5), {at: np.exp(-at * np.exp(risks)) for at in (0.3, 0.8)}
    cases = survivors("federated", risks, times, events, curve=good)
    cases += survivors("pooled", -risks, times, events, curve=dict.fromkeys((0.3, 0.8), flat))
    found = {row.metric: row for row in compare(cases, SummarySettings(round=1, seed=0, draws=200))}
    assert set(found) == {"c_index", "integrated_brier"}
    # The pooled model ranks the other way round: what one gets right the other gets wrong.
    ours = float(survival.c_index_of(risks, times, events)(np.ones((1, 60)))[0])
    assert found["c_index"].value == pytest.approx(2 * ours - 1)
    assert found["c_index"].p < 0.01
    assert found["c_index"].method.endswith("jackknife z, Holm over 1 tests")
    expected = survival.integrated_terms(good, times, events) - survival.integrated_terms(
        dict.fromkeys((0.3, 0.8), flat), times, events
    )
    assert found["integrated_brier"].value == pytest.approx(expected.mean())
    assert found["integrated_brier"].low < expected.mean() < found["integrated_brier"].high
    few = [event and i < 5 for i, event in enumerate(events)]
    rare = survivors("federated", risks, times, few) + survivors("pooled", -risks, times, few)
    assert compare(rare, SummarySettings(round=1, seed=0, min_patients=6, draws=20)) == []


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
