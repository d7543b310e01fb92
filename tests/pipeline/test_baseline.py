"""Baseline hazards: their horizons, and the file that holds them."""

from __future__ import annotations

from medfed.pipeline import baseline
from medfed.runs.folder import RunFolder


def test_horizons_are_quartiles_to_two_digits_and_none_where_nothing_happened(tmp_path):
    assert baseline.horizons([101.0, 202.0, 303.0, 404.0, 505.0, 9.0], [1, 1, 1, 1, 1, 0]) == [200, 300, 400]
    assert baseline.horizons([1.0, 2.0], [0, 0]) == []
    baseline.write_baseline_file(RunFolder(tmp_path), {"federated": {200.0: 0.25, 300.0: 0.5}})
    assert baseline.read_baselines(RunFolder(tmp_path)) == {"federated": {200.0: 0.25, 300.0: 0.5}}
    assert baseline.read_baselines(RunFolder(tmp_path / "nowhere")) == {}
