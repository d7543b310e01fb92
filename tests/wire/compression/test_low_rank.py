"""Low rank against singular vectors, and where factors would be longer."""

from __future__ import annotations

import pytest
import torch

from medfed.wire.compression.low_rank import LowRank

torch.set_num_threads(1)


def test_low_rank_says_a_matrix_of_that_rank_exactly() -> None:
    g = torch.Generator().manual_seed(1)
    matrix = torch.randn(30, 3, generator=g) @ torch.randn(3, 40, generator=g)
    decoded = LowRank(rank=3).decode(LowRank(rank=3).encode({"w": matrix.view(30, 8, 5)}, {})[0])["w"]
    torch.testing.assert_close(decoded.view(30, 40), matrix, rtol=1e-4, atol=1e-5)


def test_low_rank_finds_the_best_approximation_over_rounds() -> None:
    g = torch.Generator().manual_seed(2)
    u, _ = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(50, 40, generator=g, dtype=torch.float64))
    sizes = torch.tensor([10.0, 8.0, *[1.0 / (i + 1) for i in range(38)]], dtype=torch.float64)
    matrix = u @ torch.diag(sizes) @ v.T
    # Eckart and Young: no rank 2 matrix is nearer than the root of the other singular values' squares.
    best = float(sizes[2:].square().sum().sqrt())
    rule, state = LowRank(rank=2), {}
    for _ in range(8):
        encoded, state = rule.encode({"w": matrix.float()}, state)  # type: ignore[assignment]
    assert float((rule.decode(encoded)["w"] - matrix).norm()) == pytest.approx(best, rel=1e-4)


def test_small_tensors_go_as_they_are_where_factors_would_be_longer() -> None:
    encoded, _ = LowRank(rank=4).encode(
        {"b": torch.ones(9), "m": torch.ones(8, 8), "w": torch.ones(9, 9)}, {}
    )
    assert sorted(encoded.groups["plain"]) == ["b", "m"]
    assert sorted(encoded.groups["left"]) == ["w"]
