"""Distances and scalar products between sites' updates, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from medfed.aggregation._distances import distances_to, scalar_products, squared_distances
from medfed.errors import RuleError
from medfed.wire.update import Update

WEIGHTS = {"a": torch.full((2,), 1e6, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}


def updates(*rows: tuple[float, float, float]) -> list[Update]:
    return [
        Update(
            f"s{number}",
            4,
            {"a": torch.tensor(row[:2], dtype=torch.float64), "b": torch.tensor(row[2], dtype=torch.float64)},
            1,
        )
        for number, row in enumerate(rows)
    ]


def test_squared_distances_by_hand_over_all_tensors():
    sites = updates((0, 0, 0), (3, 0, 4), (0, 0, 0), (3, 4, 4))
    table = squared_distances(sites, WEIGHTS)
    assert table.round(decimals=9).tolist() == [
        [0, 25, 0, 41],
        [25, 0, 25, 16],
        [0, 25, 0, 41],
        [41, 16, 41, 0],
    ]


def test_scalar_products_are_of_deltas_and_of_what_is_added():
    sites = updates((1, 0, 2), (3, 1, 0))
    extra = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor(1.0)}
    assert scalar_products(sites, WEIGHTS).tolist() == [[5, 3], [3, 10]]
    assert scalar_products(sites, WEIGHTS, extra).tolist() == [[5, 3, 2], [3, 10, 1], [2, 1, 2]]


def test_distances_to_a_combination_by_hand():
    # Vectors (0, 0), (2, 0), (0, 4); their middle with weights 1/2, 1/4, 1/4 is (0.5, 1).
    products = torch.tensor([[0.0, 0, 0], [0, 4, 0], [0, 0, 16]], dtype=torch.float64)
    centre = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    expected = [math.hypot(0.5, 1), math.hypot(1.5, 1), math.hypot(0.5, 3)]
    assert distances_to(products, centre).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("table", [squared_distances, scalar_products])
def test_a_site_whose_values_are_not_finite_is_named(table):
    sites = updates((1, 0, 2), (float("nan"), 1, 0), (1, 1, 1))
    with pytest.raises(RuleError, match=r"merge for round 4: the update of site 's[01]' has values that"):
        table(sites, WEIGHTS)
