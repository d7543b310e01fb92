"""Survival metrics by hand and against scikit-learn where nobody is censored."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from medfed.errors import DataError
from medfed.evaluation import survival as s


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
    found = once(s.c_index_of(risks, np.where(early, 1.0, 2.0), early), 80)
    assert found == pytest.approx(roc_auc_score(early, risks))


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
    found = once(s.brier_of(predicted, times, np.ones(60), 0.7), 60)
    assert found == pytest.approx(brier_score_loss(times > 0.7, predicted))


def test_brier_weighs_by_the_chance_of_not_being_censored():
    # Censored at 1 (of 4 at risk): G = 3/4 afterwards. At 2.5: the event at 2 weighs 4/3 with 0.2^2, the
    # one alive 4/3 with (1 - 0.9)^2, twice; the censored one nothing.
    times, events, predicted = [1, 2, 3, 4], [0, 1, 1, 0], [0.5, 0.2, 0.9, 0.9]
    expected = (4 / 3 * 0.04 + 2 * 4 / 3 * 0.01) / 4
    assert once(s.brier_of(predicted, times, events, 2.5), 4) == pytest.approx(expected)


def test_times_and_survival_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="times above zero"):
        s.c_index_of([0.1, 0.2], [0, 1], [1, 1])
    with pytest.raises(DataError, match="between 0 and 1"):
        s.brier_of([1.2, 0.1], [1, 2], [1, 1], 1.5)


def test_measure_gives_intervals():
    generator = np.random.default_rng(3)
    risks = generator.normal(0, 1, 60)
    times, events = generator.exponential(np.exp(-risks)) + 1e-3, generator.random(60) < 0.7
    curves = {at: np.exp(-at * np.exp(risks)) for at in (0.5, 1.0)}
    found = s.measure(risks, times, events, curves=curves, seed=0, draws=200)
    assert list(found) == ["c_index", "brier@0.5", "brier@1", "integrated_brier"]
    assert all(interval.low <= interval.value <= interval.high for interval in found.values())
    assert found["c_index"].low > 0.5
