"""Krum's choice of sites from their distances; its models are tested with the robust rules."""

from __future__ import annotations

import torch

from medfed.aggregation._krum import krum_scores, select_lowest

DISTANCES = torch.tensor([[0.0, 1, 4, 9], [1, 0, 1, 4], [4, 1, 0, 1], [9, 4, 1, 0]], dtype=torch.float64)


def test_krums_score_is_the_sum_to_the_nearest_neighbours():
    # Four points on a line at 0, 1, 2, 3.
    assert krum_scores(DISTANCES, range(4), 2) == [5.0, 2.0, 2.0, 5.0]
    assert krum_scores(DISTANCES, [0, 1, 3], 1) == [1.0, 1.0, 4.0]
    assert krum_scores(DISTANCES, [2], 1) == [0.0]


def test_the_lowest_scores_are_chosen_and_ties_go_by_name():
    assert select_lowest(DISTANCES, range(4), 2, 3) == [1, 2, 0]
    assert select_lowest(DISTANCES, [3, 1, 0], 1, 1) == [0]
