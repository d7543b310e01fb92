"""Baseline hazards: their horizons, and the file that holds them."""

from __future__ import annotations

import numpy as np

from medfed.pipeline import baseline
from medfed.runs.folder import RunFolder


def test_horizons_are_quartiles_to_two_digits_and_none_where_nothing_happened(tmp_path):
    assert baseline.horizons([101.0, 202.0, 303.0, 404.0, 505.0, 9.0], [1, 1, 1, 1, 1, 0]) == [200, 300, 400]
    assert baseline.horizons([1.0, 2.0], [0, 0]) == []
    baseline.write_baseline_file(RunFolder(tmp_path), {"federated": {200.0: 0.25, 300.0: 0.5}})
    assert baseline.read_baselines(RunFolder(tmp_path)) == {"federated": {200.0: 0.25, 300.0: 0.5}}
    assert baseline.read_baselines(RunFolder(tmp_path / "nowhere")) == {}


def test_a_horizon_is_no_patients_event_time():
    """Of twelve events the mean of three at the median, 11 to 17.3, and at the third quartile, 19 to 29.

    At the first are 5.5 to 11, but only two events are between their mean and the median's.
    """
    times = [2.2, 3.3, 5.5, 7.1, 11.0, 13.0, 17.3, 19.0, 23.0, 29.0, 31.0, 37.0]
    assert baseline.horizons(times, [1] * 12, 3) == [14, 24]
    assert baseline.horizons(times, [1] * 12) == [6.7, 15, 24]


def test_no_horizon_has_few_events_on_a_side_of_it():
    times = [float(time) for time in range(1, 13)]
    assert baseline.horizons(times[:5], [1] * 5, 3) == []  # 2 and 3
    assert baseline.horizons(times[:6], [1] * 6, 3) == [3]  # 3 and 3; the next has none since
    assert baseline.horizons(times[:2], [1] * 2, 3) == []
    for number in range(1, 60):
        events = np.sort(np.random.default_rng(number).exponential(30, number))
        kept = baseline.horizons(events, np.ones(number), 5)
        counts = np.histogram(events, [-1.0, *kept, np.inf])[0]
        assert number < 5 or all(count == 0 or count >= 5 for count in counts)
