"""Survival metrics by hand and against scikit-learn where nobody is censored."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from medfed.errors import DataError
from medfed.evaluation import survival as s
from medfed.evaluation.groups import estimates
from medfed.evaluation.intervals import Resampling
from medfed.evaluation.metrics import SurvivalGroup
from medfed.evaluation.patients import SurvivalPredictions


def measured(risks, times, events, curves, draws):
    group = SurvivalGroup(SurvivalPredictions(risks, times, events, curves), Resampling(0, draws=draws))
    return {one.metric: one.interval for one in estimates(group)}


def once(statistic, n):
    return float(statistic(np.ones((1, n)))[0])


def test_c_index_by_hand():
    # Usable pairs, earlier time an event: (1,2) right, (1,3) right, (1,4) wrong, (3,4) wrong; 2 is censored.
    times, events, risks = [1, 2, 3, 4], [1, 0, 1, 1], [0.7, 0.5, 0.6, 0.9]
    assert once(s.c_index_of(risks, times, events), 4) == pytest.approx(2 / 4)


def test_ties_in_risk_count_half_and_a_censoring_at_an_events_time_came_later():
    assert once(s.c_index_of([0.5, 0.5], [1, 2], [1, 0]), 2) == 0.5
    assert once(s.c_index_of([0.9, 0.5], [1, 1], [1, 0]), 2) == 1.0
    assert np.isnan(once(s.c_index_of([0.9, 0.5], [1, 1], [1, 1]), 2))


def test_c_index_of_two_times_is_the_auroc():
    generator = np.random.default_rng(0)
    early = generator.random(80) < 0.4
    risks = generator.random(80) + 0.5 * early
    result = once(s.c_index_of(risks, np.where(early, 1.0, 2.0), early), 80)
    assert result == pytest.approx(roc_auc_score(early, risks))


def test_a_resample_equals_the_statistic_of_repeated_patients_apart_from_pairs_of_one_patient():
    generator = np.random.default_rng(1)
    times, events, risks = generator.exponential(1, 25), generator.random(25) < 0.6, generator.random(25)
    counts = generator.integers(0, 3, (1, 25)).astype(float)
    drawn = np.repeat(np.arange(25), counts[0].astype(int))
    ours = float(s.c_index_of(risks, times, events)(counts)[0])
    assert ours == pytest.approx(once(s.c_index_of(risks[drawn], times[drawn], events[drawn]), len(drawn)))


def test_brier_without_censoring_is_the_plain_one():
    generator = np.random.default_rng(2)
    times, predicted = generator.exponential(1, 60) + 0.01, generator.random(60)
    result = once(s.brier_of(predicted, times, np.ones(60), 0.7), 60)
    assert result == pytest.approx(brier_score_loss(times > 0.7, predicted))


def test_brier_weighs_by_the_chance_of_not_being_censored():
    # Censored at 1 (of 4 at risk): G = 3/4 afterwards. At 2.5: the event at 2 weighs 4/3 with 0.2^2, the
    # one alive 4/3 with (1 - 0.9)^2, twice; the censored one nothing.
    times, events, predicted = [1, 2, 3, 4], [0, 1, 1, 0], [0.5, 0.2, 0.9, 0.9]
    expected = (4 / 3 * 0.04 + 2 * 4 / 3 * 0.01) / 4
    assert once(s.brier_of(predicted, times, events, 2.5), 4) == pytest.approx(expected)


def test_times_and_survival_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="times must not be negative"):
        s.c_index_of([0.1, 0.2], [-1, 1], [1, 1])
    with pytest.raises(DataError, match="between 0 and 1"):
        s.brier_of([1.2, 0.1], [1, 2], [1, 1], 1.5)


def test_measure_gives_intervals():
    generator = np.random.default_rng(3)
    risks = generator.normal(0, 1, 60)
    times, events = generator.exponential(np.exp(-risks)) + 1e-3, generator.random(60) < 0.7
    curves = {at: np.exp(-at * np.exp(risks)) for at in (0.5, 1.0)}
    result = measured(risks, times, events, curves, draws=200)
    assert list(result) == ["c_index", "brier@0.5", "brier@1", "integrated_brier", "events"]
    assert result.pop("events").value == events.sum()
    assert all(interval.low <= interval.value <= interval.high for interval in result.values())
    assert result["c_index"].low > 0.5


def test_a_time_of_zero_is_a_time():
    # Whoever dies on the first day is compared with all who lived longer: pairs (1,2), (1,3)
    # right, (2,3) wrong.
    times, events, risks = [0, 1, 2], [1, 1, 0], [0.9, 0.1, 0.5]
    assert once(s.c_index_of(risks, times, events), 3) == pytest.approx(2 / 3)


def test_the_integrated_brier_score_is_the_mean_of_its_patients_parts():
    generator = np.random.default_rng(4)
    times, events = generator.exponential(1, 50) + 0.01, generator.random(50) < 0.7
    curves = {at: generator.random(50) for at in (0.3, 0.6, 1.2)}
    result = measured(np.zeros(50), times, events, curves, draws=10)
    one, two, three = (result[f"brier@{at:g}"].value for at in (0.3, 0.6, 1.2))
    assert result["integrated_brier"].value == pytest.approx(
        ((one + two) / 2 * 0.3 + (two + three) / 2 * 0.6) / 0.9
    )
    assert s.integrated_terms(curves, times, events).mean() == pytest.approx(result["integrated_brier"].value)


def pair_of(generator, n, noise=1.0):
    """Return two models' risks, as good as each other where the second's noise is 1, and times and events."""
    true = generator.normal(0, 1, n)
    times, last = generator.exponential(np.exp(-true)), generator.exponential(2, n)
    one, two = (true + generator.normal(0, sd, n) for sd in (1.0, noise))
    return one, two, np.minimum(times, last), times <= last


def test_the_difference_of_two_c_indices_by_hand():
    times, events = [1, 2, 3, 4], [1, 1, 1, 0]
    # All six pairs can be compared; the first model gets all right, the second all but (1, 2).
    interval, _ = s.c_index_difference([4, 3, 2, 1], [3, 4, 2, 1], times, events, Resampling(0, draws=20))
    assert interval.value == pytest.approx(1 / 6)


def test_a_difference_of_c_indices_is_found_as_often_as_its_test_says():
    generator = np.random.default_rng(5)
    none = [s.c_index_difference(*pair_of(generator, 80), Resampling(0, draws=2))[1] for _ in range(400)]
    assert 0.03 <= np.mean([p < 0.05 for p in none]) <= 0.075
    there = [
        s.c_index_difference(*pair_of(generator, 160, noise=20.0), Resampling(0, draws=2))[1]
        for _ in range(40)
    ]
    assert np.mean([p < 0.05 for p in there]) > 0.8


def test_two_models_of_one_order_differ_by_nothing():
    generator = np.random.default_rng(6)
    risks, _, times, events = pair_of(generator, 30)
    interval, p = s.c_index_difference(risks, 2 * risks + 1, times, events, Resampling(0, draws=20))
    assert (interval.value, p) == (0.0, 1.0)


def test_breslow_by_hand():
    """Times 1 (event), 2 (censored), 3 (event) at relative risks 1, 2, 4: jumps 1 / 7 and 1 / 4."""
    risks = [0.0, math.log(2), math.log(4)]
    result = s.baseline_hazard(risks, [1.0, 2.0, 3.0], [1, 0, 1], [0.5, 1.0, 2.5, 3.0])
    assert result == pytest.approx([0.0, 1 / 7, 1 / 7, 1 / 7 + 1 / 4])


def test_breslow_equals_lifelines():
    lifelines = pytest.importorskip("lifelines")
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    x = generator.normal(0, 1, 200)
    times = generator.exponential(np.exp(-x)) + 0.01
    censored = generator.exponential(2.0, 200)
    table = pandas.DataFrame({"x": x, "time": np.minimum(times, censored), "event": times <= censored})
    model = lifelines.CoxPHFitter().fit(table, "time", "event")
    risks = model.predict_log_partial_hazard(table).to_numpy()
    # At event times, since lifelines draws a line between its steps.
    at = sorted(table["time"][table["event"]])[10:120:40]
    expected = model.predict_survival_function(table, times=at).to_numpy()
    hazard = s.baseline_hazard(risks, table["time"], table["event"], at)
    result = np.exp(-np.array(hazard)[:, None] * np.exp(risks)[None])
    assert result == pytest.approx(expected, abs=1e-6)
