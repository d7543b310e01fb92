"""Clipping of whole updates, and the sites' shares of the noise."""

from __future__ import annotations

import math

import pytest
import torch

from medfed.privacy._clipping import clipped, factor, noised, share
from medfed.wire.update import Update
from medfed.wire.weights import norm


def update(site: str, *values: float, examples: int = 7, **more) -> Update:
    a, b, c, d = values
    return Update(site, 1, {"a": torch.tensor([a, b]), "b": torch.tensor([[c], [d]])}, examples, **more)


def test_an_update_is_clipped_over_all_its_tensors_together():
    # (3, 0, 0, 4) has length 5; to length 1 it is a fifth.
    short = clipped(update("x", 3, 0, 0, 4).delta, 1.0)
    torch.testing.assert_close(short["a"], torch.tensor([0.6, 0.0], dtype=torch.float64), rtol=2e-5, atol=0)
    assert norm(short) <= 1.0
    same = update("x", 0.3, 0, 0, 0.4).delta
    assert torch.equal(clipped(same, 1.0)["a"], same["a"].double())


def test_an_update_that_is_not_finite_counts_as_none():
    assert factor(float("nan"), 1.0) == factor(float("inf"), 1.0) == 0.0
    assert norm(clipped({"a": torch.tensor([float("inf"), 1.0])}, 1.0)) == 0.0


def test_shares_of_noise_under_a_secure_sum_add_up_to_the_whole():
    # Four sites answer, each with its share: variances add.
    each = share(0.5, 2.0, answering=4)
    assert each == 0.5
    total = sum(noised({"w": torch.zeros(100_000)}, each, 0.5, {"w": torch.zeros(1)})["w"] for _ in range(4))
    assert float(total.std()) == pytest.approx(2.0 * 0.5, rel=5 / math.sqrt(2 * 100_000))
