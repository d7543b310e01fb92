"""Membership inference: what is tried, what is not, and how the shadow models' losses become a result."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from medfed.pipeline.leakage import membership
from medfed.pipeline.leakage.findings import AttackBudget
from medfed.pipeline.leakage.membership import MIN_SHADOWS, attack_membership
from medfed.privacy import NoPrivacy

STUDY = SimpleNamespace(task=SimpleNamespace(needs="classify"))
ITEMS = [{}] * 6


@pytest.fixture
def attack(monkeypatch):
    """The attack on shadow models whose members have a loss of `inside`, and the others one of 1."""

    def run(shadows, inside, budget=16):
        generator = np.random.default_rng(0)
        members = [generator.permutation(6) < 3 for _ in range(shadows)]
        noise = generator.normal(0, 1e-3, (shadows, 6))
        losses = [list(np.where(one, inside, 1.0) + noise[i]) for i, one in enumerate(members)]
        monkeypatch.setattr(membership, "_train_shadows", lambda *_: (losses, members))
        return attack_membership(STUDY, ITEMS, [NoPrivacy()], AttackBudget(shadows=budget))

    return run


def test_a_model_that_knows_its_patients_by_heart_gives_all_of_them_away(attack):
    (result,), notes = attack(16, 0.0)
    assert (result.privacy, result.models, result.cases) == ("none", 16, 6)
    assert (result.by_loss, result.by_ratio) == (1.0, 1.0)
    assert (result.found_at_0_1_percent, result.found_at_1_percent) == (1.0, 1.0)
    assert notes == []
    assert not result.is_reliable


def test_a_model_that_is_worse_on_its_patients_is_no_membership_by_loss(attack):
    (result,), _ = attack(16, 2.0)
    assert result.by_loss == 0.0


def test_too_few_models_cannot_be_each_others_shadows(attack):
    (result,), (note,) = attack(MIN_SHADOWS - 1, 0.0)
    assert result.by_ratio is None
    assert note == "7 of 16 shadow models were trained in 300 s (--minutes)."
    (result,), _ = attack(MIN_SHADOWS, 0.0, budget=MIN_SHADOWS)
    assert result.by_ratio is not None


def test_what_cannot_be_tried_is_said():
    survival = SimpleNamespace(task=SimpleNamespace(needs="survival"))
    results, (note,) = attack_membership(survival, ITEMS, [NoPrivacy()], AttackBudget())
    assert results == []
    assert note.startswith("Membership was not tried: a survival loss compares patients")
    for items, budget in ((ITEMS[:3], AttackBudget()), (ITEMS, AttackBudget(shadows=1))):
        assert attack_membership(STUDY, items, [NoPrivacy()], budget) == ([], ["Membership was not tried."])
