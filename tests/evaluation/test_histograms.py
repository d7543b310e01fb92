"""Counts that add up over hospitals give the pooled curves within the bound they state."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medfed.errors import DataError
from medfed.evaluation import histograms as h
from medfed.evaluation import rows


def patients(seed, n):
    generator = np.random.default_rng(seed)
    y = generator.random(n) < 0.35
    return 1 / (1 + np.exp(-generator.normal(0, 1.3, n) - 1.5 * y + 0.7)), y


def of(p, y, site="a", **options):
    return h.ScoreHistogram(1, site, "test", "federated", h.count_scores(p, y, **options))


@pytest.mark.parametrize("minimum", [1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_pooled_auroc_lies_within_the_stated_bounds(seed, minimum):
    parts = [patients(10 * seed + place, n) for place, n in enumerate((40, 90, 200))]
    total = h.merged([of(p, y, site=f"s{i}", min_patients=minimum) for i, (p, y) in enumerate(parts)])
    truth = roc_auc_score(np.concatenate([y for _, y in parts]), np.concatenate([p for p, _ in parts]))
    bounds = h.auroc_bounds(total)
    assert bounds.low <= truth <= bounds.high
    assert abs(bounds.value - truth) <= (bounds.high - bounds.low) / 2
    if minimum == 1:
        assert bounds.high - bounds.low < 0.02


def test_no_bin_that_leaves_is_small():
    for seed in range(20):
        p, y = patients(seed, 60)
        histogram = of(p, y, min_patients=5)
        assert len(histogram.bins) > 3
        assert all(cell.n >= 5 for cell in histogram.bins)
        assert histogram.positives == y.sum()
        assert sum(cell.risk for cell in histogram.bins) == pytest.approx(p.sum())


def test_fewer_patients_than_a_group_leave_nothing():
    assert of([0.1, 0.9, 0.8], [0, 1, 1], min_patients=5).bins == ()


def test_patients_in_one_bin_may_be_ranked_either_way():
    histogram = of([0.1, 0.9, 0.8], [0, 1, 1], min_patients=3)
    assert [(cell.low, cell.high) for cell in histogram.bins] == [(0.0, 0.91)]
    assert h.auroc_bounds(histogram) == (0.5, 0.0, 1.0)


def test_bins_that_overlap_are_in_doubt_by_as_much_as_they_overlap():
    # The positive is spread over 0.5 to 1, the negative over 0.25 to 0.75: above it with chance 7 / 8.
    cells = (h.Bin(0.25, 0.75, 0, 1, 0.5), h.Bin(0.5, 1.0, 1, 0, 0.8))
    histogram = h.ScoreHistogram(round=1, site="a", split="test", model="federated", bins=cells)
    assert h.auroc_bounds(histogram) == (pytest.approx(7 / 8), 0.0, 1.0)


def test_roc_and_reliability_by_hand():
    histogram = of([0.05, 0.15, 0.15, 0.95], [0, 0, 1, 1], bins=10)
    assert h.roc(histogram)[0] == (0.0, 0.0)
    assert h.roc(histogram)[-1] == (1.0, 1.0)
    assert (0.0, 0.5) in h.roc(histogram)
    assert (0.5, 1.0) in h.roc(histogram)
    first, second, last = h.reliability(histogram)
    assert (first.predicted, first.observed, first.n) == (pytest.approx(0.05), 0.0, 1)
    assert (second.predicted, second.observed, second.n) == (pytest.approx(0.15), 0.5, 2)
    assert (last.predicted, last.observed, last.n) == (pytest.approx(0.95), 1.0, 1)


def test_merging_twice_in_any_order_is_the_same_and_other_models_do_not_add():
    parts = [of(*patients(seed, 80), site=str(seed), min_patients=5) for seed in range(3)]
    assert h.merged(parts) == h.merged(parts[::-1])
    other = h.ScoreHistogram(2, "z", "test", "federated", h.count_scores([0.5], [1]))
    with pytest.raises(DataError, match="different rounds, splits, models or classes"):
        h.merged([parts[0], other])


def test_one_outcome_alone_has_no_curve():
    histogram = of([0.1, 0.2], [0, 0])
    assert h.auroc_bounds(histogram) is None
    assert h.roc(histogram) == []


def test_net_benefit_equals_the_patients_own():
    p, y = patients(1, 100)
    net_benefit = h.net_benefit_of(of(p, y, bins=20))
    assert len(net_benefit) > 10
    for threshold, model, everyone in net_benefit:
        odds, called = threshold / (1 - threshold), p >= threshold
        assert model == pytest.approx((called & y).mean() - odds * (called & ~y).mean())
        assert everyone == pytest.approx(y.mean() - odds * (1 - y.mean()))


def test_net_benefit_by_hand():
    # At 0.25: true positives 2 of 4, false positive 1 of 4, odds 1 / 3. Treating all: 2 / 4 - 2 / 4 / 3.
    threshold, model, everyone = h.net_benefit_of(of([0.9, 0.6, 0.4, 0.1], [1, 0, 1, 0], bins=4))[0]
    assert (threshold, model, everyone) == pytest.approx((0.25, 0.5 - 0.25 / 3, 0.5 - 0.5 / 3))


def test_histograms_come_back_from_their_file(tmp_path):
    written = [of(*patients(seed, 30)) for seed in range(2)]
    rows.write(tmp_path / "curves.jsonl", written)
    assert h.read(tmp_path / "curves.jsonl") == written


def test_precision_and_recall_by_hand():
    """Above 0.75 half of the upper bin's 3 and 3 are called; above 0.25 all of it and half of 1 and 18."""
    histogram = h.ScoreHistogram(
        1, "a", "test", "federated", (h.Bin(0, 0.5, 1, 18, 5.0), h.Bin(0.5, 1, 3, 3, 4.0))
    )
    points = dict(h.precision_recall(histogram))
    assert points[0.375] == pytest.approx(0.5)
    assert points[0.75] == pytest.approx(0.5)
    assert points[0.875] == pytest.approx(3.5 / 15.5)
    assert points[1.0] == pytest.approx(4 / 25)
    # Not the straight line from (0.75, 0.5) to (1, 0.16), which would be 0.33 in the middle.
    healthy = h.ScoreHistogram(1, "a", "test", "federated", (h.Bin(0, 1, 0, 5, 2.0),))
    assert h.precision_recall(healthy) == []


@pytest.mark.parametrize("seed", range(3))
def test_fine_bins_give_the_precision_of_the_patients_themselves(seed):
    p, y = patients(seed, 400)
    points = h.precision_recall(of(p, y))
    for edge in (0.25, 0.5, 0.75):
        called = p >= edge
        recall, precision = (called & y).sum() / y.sum(), (called & y).sum() / called.sum()
        nearest = min(points, key=lambda point: abs(point[0] - recall) + abs(point[1] - precision))
        assert nearest == pytest.approx((recall, precision))
