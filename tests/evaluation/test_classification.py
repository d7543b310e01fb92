"""Each metric against scikit-learn, statsmodels or a hand, and the traps that peers' metrics fall into."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from medfed.errors import DataError
from medfed.evaluation import calibration as k
from medfed.evaluation import classification as c
from medfed.evaluation.groups import estimates
from medfed.evaluation.intervals import Resampling
from medfed.evaluation.metrics import ClassGroup


def sample(seed, n=200, ties=False, prevalence=0.4):
    generator = np.random.default_rng(seed)
    y = generator.random(n) < prevalence
    p = 1 / (1 + np.exp(-(generator.normal(0, 1, n) + 1.2 * y - 0.8)))
    return (np.round(p, 1) if ties else p), y


def estimates_of(p, y, names, draws=2000):
    return estimates(ClassGroup.of(p, y, names, Resampling(0, draws=draws)))


def by_name(found):
    return {(item.structure, item.metric): item.interval for item in found}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ranking_metrics_equal_scikit_learn(seed, ties):
    p, y = sample(seed, ties=ties)
    rows_by_name = by_name(estimates_of(np.c_[1 - p, p], y, ["no", "yes"], draws=50))
    assert rows_by_name[None, "auroc"].value == pytest.approx(sk.roc_auc_score(y, p), rel=1e-12)
    assert rows_by_name[None, "auprc"].value == pytest.approx(sk.average_precision_score(y, p), rel=1e-12)
    assert rows_by_name[None, "brier"].value == pytest.approx(sk.brier_score_loss(y, p), rel=1e-12)
    assert rows_by_name[None, "f1"].value == pytest.approx(sk.f1_score(y, p >= 0.5), rel=1e-12)
    assert rows_by_name[None, "mcc"].value == pytest.approx(sk.matthews_corrcoef(y, p >= 0.5), rel=1e-12)
    assert rows_by_name[None, "sensitivity"].value == pytest.approx(sk.recall_score(y, p >= 0.5), rel=1e-12)
    assert rows_by_name[None, "specificity"].value == pytest.approx(
        sk.recall_score(y, p >= 0.5, pos_label=0), rel=1e-12
    )
    assert rows_by_name[None, "ppv"].value == pytest.approx(sk.precision_score(y, p >= 0.5), rel=1e-12)


def test_a_resample_is_worth_the_patients_it_repeats():
    p, y = sample(7, n=30, ties=True)
    counts = np.random.default_rng(0).integers(0, 4, (5, 30)).astype(float)
    for statistic, peer in (
        (c.auroc_of, sk.roc_auc_score),
        (c.average_precision_of, sk.average_precision_score),
    ):
        for row, value in zip(counts, statistic(p, y)(counts), strict=True):
            drawn = np.repeat(np.arange(30), row.astype(int))
            assert value == pytest.approx(peer(y[drawn], p[drawn]), rel=1e-12)


def test_delong_variance_equals_its_definition_over_all_pairs():
    p, y = sample(3, n=40, ties=True)
    ups, downs = p[y], p[~y]
    wins = (ups[:, None] > downs) + 0.5 * (ups[:, None] == downs)
    variance = wins.mean(axis=1).var(ddof=1) / len(ups) + wins.mean(axis=0).var(ddof=1) / len(downs)
    comparison = c.delong(p, y)
    area = wins.mean()
    half = 1.959963985 * np.sqrt(variance) / (area * (1 - area))
    logit = np.log(area / (1 - area))
    assert comparison.value == pytest.approx(area)
    assert comparison.low == pytest.approx(1 / (1 + np.exp(half - logit)))
    assert comparison.high == pytest.approx(1 / (1 + np.exp(-half - logit)))


def test_delong_and_bootstrap_agree():
    p, y = sample(1, n=400)
    delong, boot = c.delong(p, y), Resampling(2).interval(c.auroc_of(p, y), 400)
    assert delong.low == pytest.approx(boot.low, abs=0.006)
    assert delong.high == pytest.approx(boot.high, abs=0.006)


def test_auroc_intervals_cover_95_percent():
    # Two normals 1 apart: the true AUROC is Phi(1 / sqrt 2) = 0.76025.
    generator = np.random.default_rng(3)
    y = np.r_[np.ones(25, bool), np.zeros(35, bool)]
    held, boot, runs = 0, 0, 600
    for run in range(runs):
        p = 1 / (1 + np.exp(-generator.normal(0, 1, 60) - y))
        delong = c.delong(p, y)
        resampled = Resampling(run, list(y), draws=400).interval(c.auroc_of(p, y), 60)
        held += delong.low <= 0.76025 <= delong.high
        boot += resampled.low <= 0.76025 <= resampled.high
    assert 0.93 <= held / runs <= 0.97
    assert 0.93 <= boot / runs <= 0.97


def test_one_class_has_no_auroc_and_says_why():
    p = np.linspace(0.1, 0.9, 8)
    rows_by_name = by_name(estimates_of(np.c_[1 - p, p], np.zeros(8, int), ["no", "yes"]))
    assert (rows_by_name[None, "auroc"].value, rows_by_name[None, "auroc"].note) == (None, "one class only")
    assert (rows_by_name[None, "auprc"].value, rows_by_name[None, "auprc"].note) == (
        None,
        "no patient of this class",
    )
    assert (rows_by_name[None, "sensitivity"].value, rows_by_name[None, "sensitivity"].note) == (
        None,
        "no patient of this class",
    )
    assert rows_by_name[None, "calibration_slope"].note == "one class only"
    assert rows_by_name[None, "specificity"].value is not None


def test_a_probability_above_one_is_refused_and_not_taken_for_a_logit():
    with pytest.raises(DataError, match="1 of 3 probabilities are not between 0 and 1; apply softmax"):
        c.delong([0.2, 1.2, 0.4], [0, 1, 0])
    with pytest.raises(DataError, match="do not sum to one"):
        estimates_of([[0.2, 0.2, 0.2]], [0], ["a", "b", "c"])


def test_perfect_separation_is_not_certainty():
    comparison = c.delong([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1])
    # Three disjoint pairs, all right: 0.025 ** (1 / 3).
    assert comparison.value == 1.0
    assert comparison.low == pytest.approx(0.025 ** (1 / 3))
    assert comparison.high == 1.0
    assert k.calibration([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1]).slope.value is None


def test_ece_by_hand():
    # Bin 0.2 to 0.3: risks 0.2 and 0.26, one event of two; bin 0.9 to 1: risk 1.0 and an event.
    value = c.ece_of(np.array([0.2, 0.26, 1.0]), np.array([False, True, True]))(np.ones((1, 3)))[0]
    assert value == pytest.approx(abs(1 - 0.46) / 3)


def test_the_operating_point_is_youdens_and_separates_the_observed_values():
    p, y = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    # Youden is 0.5 at both 0.225 (one spared, both caught) and 0.6 (both spared, one caught): the first.
    assert c.operating_point([0.1, 0.2, 0.7, 0.9], [0, 0, 1, 1]) == pytest.approx(0.45)
    assert c.operating_point(p, y) == pytest.approx(0.225)
    assert c.operating_point(p, [1, 1, 1, 1]) is None
    # The higher the probability, the rarer: nothing is better than calling everyone.
    assert c.operating_point([0.31234, 0.32345], [1, 0]) == 0.0


@pytest.mark.parametrize(
    ("threshold", "shown"), [(0.0, "0"), (0.45123, "0.45"), (0.0012345, "0.0012"), (0.9987654, "0.9988")]
)
def test_a_threshold_is_shown_with_two_digits(threshold, shown):
    assert c.shown_threshold(threshold) == shown


def test_many_classes_macro_and_per_class_equal_scikit_learn():
    generator = np.random.default_rng(2)
    y = generator.integers(0, 3, 150)
    logits = generator.normal(0, 1, (150, 3)) + 1.3 * np.eye(3)[y]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows_by_name = by_name(estimates_of(p, y, ["a", "b", "c"], draws=50))
    assert rows_by_name[None, "auroc"].value == pytest.approx(
        sk.roc_auc_score(y, p, multi_class="ovr", average="macro"), rel=1e-12
    )
    assert rows_by_name["b", "auroc"].value == pytest.approx(sk.roc_auc_score(y == 1, p[:, 1]), rel=1e-12)
    assert rows_by_name[None, "balanced_accuracy"].value == pytest.approx(
        sk.balanced_accuracy_score(y, p.argmax(1))
    )
    assert rows_by_name[None, "f1"].value == pytest.approx(sk.f1_score(y, p.argmax(1), average="macro"))
    assert rows_by_name[None, "accuracy"].value == pytest.approx((p.argmax(1) == y).mean())


def test_macro_average_is_undefined_without_a_class_rather_than_over_the_rest():
    p = np.full((6, 3), 1 / 3)
    rows_by_name = by_name(estimates_of(p, [0, 1, 0, 1, 0, 1], ["a", "b", "c"]))
    assert (rows_by_name[None, "auroc"].value, rows_by_name[None, "auroc"].note) == (
        None,
        "a class without patients",
    )


def test_the_paired_test_sees_what_it_should():
    p, y = sample(4, n=300)
    interval, p_value = c.delong_test(p, p, y)
    assert (interval.value, p_value) == (0.0, None)
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(400):
        first, second = (np.clip(p + generator.normal(0, 0.2, 300), 0, 1) for _ in range(2))
        rejected += c.delong_test(first, second, y)[1] < 0.05
    assert 0.02 <= rejected / 400 <= 0.08
    assert c.delong_test(p, generator.random(300), y)[1] < 0.001
