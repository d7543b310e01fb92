"""Membership: areas by hand, and a likelihood ratio that finds what the plain loss cannot."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.privacy.attacks.membership import advantage, auc, by_loss, lira, logit


def test_area_by_hand():
    # Pairs (2,1) (2,2) (3,1) (3,2): won, tied, won, won.
    assert auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)
    assert [advantage(x) for x in (0.5, 1.0, 0.3, 0.75)] == pytest.approx([0, 1, 0, 0.5])


def test_logit_by_hand():
    # p = exp(-ln 4) = 1/4, so log((1/4) / (3/4)) = -ln 3.
    assert logit(np.array([np.log(4)]))[0] == pytest.approx(-np.log(3))
    assert np.isfinite(logit(np.array([0.0, 1e9]))).all()


def games(effect: float, models: int = 16, cases: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Losses of cases of different difficulty, each slightly lower if the model was trained on it."""
    generator = np.random.default_rng(0)
    inside = generator.random((models, cases)) < 0.5
    hardness = generator.normal(0, 3, cases)
    logits = hardness + effect * inside + generator.normal(0, 0.3, (models, cases))
    return np.log1p(np.exp(-logits)), inside


def test_the_ratio_sees_through_difficulty_where_the_loss_does_not():
    losses, inside = games(effect=1.0)
    assert by_loss(losses, inside) < 0.65
    # Two normals 1 apart with sd 0.3: the area is Phi(1 / (0.3 sqrt 2)) = 0.991, less what few shadows cost.
    assert lira(losses, inside) > 0.93


def test_without_an_effect_both_guess():
    losses, inside = games(effect=0.0)
    assert by_loss(losses, inside) == pytest.approx(0.5, abs=0.06)
    assert lira(losses, inside) == pytest.approx(0.5, abs=0.06)
