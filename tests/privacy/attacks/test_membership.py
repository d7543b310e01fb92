"""Membership: areas by hand, and a likelihood ratio that finds what the plain loss cannot."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.privacy.attacks.membership import advantage, auc, by_loss, lira, logit, tpr


def test_area_by_hand():
    # Pairs (2,1) (2,2) (3,1) (3,2): won, tied, won, won.
    assert auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)
    assert [advantage(x) for x in (0.5, 1.0, 0.3, 0.75)] == pytest.approx([0, 1, 0, 0.5])


def test_members_found_at_a_rate_of_false_alarms_by_hand():
    members, others = np.array([0.0, 5.0, 9.5, 20.0]), np.arange(10.0)
    # No other may be above the threshold: it is 9. One may, the 9: it is 8. Both leave 9.5 and 20.
    assert tpr(members, others, 0.001) == 0.5
    assert tpr(members, others, 0.1) == 0.5
    # Four may: 9, 8, 7, 6; the threshold is 5, which a member of 5 does not pass.
    assert tpr(members, others, 0.4) == 0.5
    assert tpr(members, others, 0.5) == 0.75
    assert tpr(members, others, 1.0) == 1.0


def test_few_certain_members_have_a_low_area_and_are_found():
    generator = np.random.default_rng(0)
    others, members = generator.normal(size=2000), generator.normal(size=2000)
    members[:200] += 10
    assert auc(members, others) == pytest.approx(0.55, abs=0.02)  # 0.9 / 2 + 0.1
    assert tpr(members, others, 0.001) == pytest.approx(0.1, abs=0.01)


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
