"""Validation scores against values worked out by hand, counted pair by pair, or from scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medfed.models.tasks._connected_components import remove_components
from medfed.models.tasks._scores import auroc, c_index, dice_scores, mean_auroc
from medfed.models.tasks._segmentation import overlap_counts


def test_overlap_counts_by_hand() -> None:
    predicted = torch.tensor([0, 1, 1, 2, 2, 0], dtype=torch.uint8)
    reference = torch.tensor([0, 1, 2, 2, 2, 1])
    # Class 1: one voxel in both, two predicted, two in the reference. Class 2: two, two, three.
    assert overlap_counts(predicted, reference, 4).tolist() == [[1, 2, 2], [2, 2, 3], [0, 0, 0]]


def test_dice_by_hand_with_each_kind_of_empty_case() -> None:
    counts = np.array(
        [
            [[3, 4, 6]],  # 2 * 3 / 10
            [[0, 5, 0]],  # empty reference, lesion predicted: 0
            [[0, 0, 7]],  # lesion missed: 0
            [[0, 0, 0]],  # both empty: not in the mean
            [[8, 8, 8]],  # perfect
        ]
    )
    scores = dice_scores(counts)
    assert scores.mean == pytest.approx((0.6 + 0 + 0 + 1) / 4)
    assert (scores.both_empty, scores.false_positives, scores.missed) == (1, 1, 1)


def test_each_structure_weighs_the_same_however_many_cases_have_it() -> None:
    counts = np.array([[[1, 1, 1], [0, 0, 0], [0, 0, 0]], [[0, 1, 1], [1, 1, 3], [0, 0, 0]]])
    scores = dice_scores(counts)
    assert scores.by_class == (0.5, 0.5, None)
    assert scores.mean == 0.5
    counts = np.array([[[1, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 1, 3]]])
    assert dice_scores(counts).mean == 0.5
    assert dice_scores(counts).both_empty == 1


def test_empty_everywhere_is_no_score_and_not_one() -> None:
    scores = dice_scores(np.zeros((3, 1, 3)))
    assert scores.mean is None
    assert scores.by_class == (None,)
    assert scores.both_empty == 3


@pytest.mark.parametrize("seed", range(10))
def test_auroc_counts_pairs_with_ties(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores, positive = draw.integers(0, 6, 30) / 5, draw.integers(0, 2, 30).astype(bool)
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    by_hand = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
    assert auroc(scores, positive) == pytest.approx(by_hand)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_auroc_of_one_class_is_no_number() -> None:
    assert auroc(np.array([0.1, 0.9]), np.array([True, True])) is None
    assert auroc(np.array([]), np.array([])) is None


def test_auroc_of_three_classes_is_the_mean_of_each_against_the_rest() -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(3), 40)
    target = draw.integers(0, 3, 40)
    expected = roc_auc_score(target, probabilities, multi_class="ovr", average="macro")
    assert mean_auroc(probabilities, target) == pytest.approx(expected)
    assert mean_auroc(probabilities, np.minimum(target, 1)) is None


@pytest.mark.parametrize("seed", range(10))
def test_c_index_counts_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = 25
    risk, time, event = draw.integers(0, 9, n), draw.integers(1, 9, n), draw.integers(0, 2, n)
    known = concordant = 0.0
    for i, j in itertools.permutations(range(n), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            known += 1
            concordant += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    assert c_index(risk, time, event) == pytest.approx(concordant / known)


def test_c_index_without_a_pair_is_no_number() -> None:
    assert c_index(np.array([1.0, 2]), np.array([1.0, 2]), np.array([0, 0])) is None
    assert c_index(np.array([1.0, 2]), np.array([1.0, 1]), np.array([1, 1])) is None


def test_pieces_by_hand() -> None:
    row = torch.tensor([1, 1, 1, 0, 1, 1, 0, 1, 0, 2, 0, 2, 2]).reshape(1, 1, -1, 1, 1)

    def kept(largest: list[int], minimum_voxels: int) -> list[int]:
        return remove_components(row, largest, minimum_voxels, classes=3).reshape(-1).tolist()

    assert kept([1], 0) == [1, 1, 1, 0, 0, 0, 0, 0, 0, 2, 0, 2, 2]
    assert kept([], 2) == [1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 2, 2]
    assert kept([1, 2], 3) == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert row.reshape(-1).tolist() == [1, 1, 1, 0, 1, 1, 0, 1, 0, 2, 0, 2, 2]


def test_pieces_touch_by_a_corner_and_images_of_a_batch_do_not() -> None:
    label = torch.zeros(2, 1, 2, 2, 2, dtype=torch.uint8)
    label[0, 0, 0, 0, 0] = label[0, 0, 1, 1, 1] = label[1, 0, 0, 0, 0] = 1
    cleaned = remove_components(label, [1], 0, classes=2)
    assert torch.equal(cleaned, label)
    assert cleaned.dtype == torch.uint8
