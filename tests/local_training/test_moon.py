"""MOON's contrastive term against a loop in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.local_training.moon import contrastive_term

torch.set_num_threads(1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.1, 0.5, 2.0]))
def test_moons_term_is_the_papers(seed: int, temperature: float) -> None:
    draw = np.random.default_rng(seed)
    z, towards, away = draw.normal(size=(3, 4, 6))

    def similar(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.exp(one @ other / np.linalg.norm(one) / np.linalg.norm(other) / temperature))

    each = [
        -np.log(similar(a, g) / (similar(a, g) + similar(a, p)))
        for a, g, p in zip(z, towards, away, strict=True)
    ]
    term = contrastive_term(*(torch.from_numpy(x) for x in (z, towards, away)), temperature)
    assert float(term) == pytest.approx(float(np.mean(each)), rel=1e-9)


def test_moon_draws_a_representation_towards_the_global_one() -> None:
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    towards, away = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    before = torch.cosine_similarity(z, towards).mean() - torch.cosine_similarity(z, away).mean()
    contrastive_term(z, towards, away, 0.5).backward()
    moved = z.detach() - 0.1 * z.grad
    assert (
        torch.cosine_similarity(moved, towards).mean() - torch.cosine_similarity(moved, away).mean() > before
    )
