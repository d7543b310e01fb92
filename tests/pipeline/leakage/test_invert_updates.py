"""Inverting an update of one step: what the attacker knows, and how much comes back."""

from __future__ import annotations

import pytest
import torch

from medfed.pipeline.leakage.findings import AttackBudget
from medfed.pipeline.leakage.invert_updates import LEARNING_RATE, MAX_OTHERS, _one_step, _prior, attack_update
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.privacy import NoPrivacy

from .test_attacker_view import STUDY, items


def test_the_attacked_update_is_one_step_at_a_rate_of_one() -> None:
    train = _one_step(STUDY, 3).train
    assert (train.rounds, train.epochs, train.batch, train.accumulate, train.clip) == (1, 1, 3, 1, None)
    assert train.optimiser.lr == LEARNING_RATE == 1
    assert train.schedule.__class__.__name__ == "Constant"


def test_an_attacker_knows_mean_and_range_of_other_cases() -> None:
    known = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    columns, pixels = _prior(known, "features"), _prior(known, "image")
    assert columns.mean.tolist() == pixels.mean.tolist() == [2, 20]
    assert (columns.low.tolist(), columns.high.tolist()) == ([1, 10], [3, 30])
    assert (float(pixels.low), float(pixels.high)) == (1, 30)


def test_a_single_row_comes_back_exactly_from_an_update_without_protection() -> None:
    rows = items(MAX_OTHERS + 10)
    with suppress_warnings():
        inversion, figures = attack_update(STUDY, rows, 1, NoPrivacy(), AttackBudget(steps=1, shadows=0))
    assert (inversion.privacy, inversion.cases) == ("none", 1)
    assert inversion.best > 0.999
    assert inversion.best > inversion.chance
    torch.testing.assert_close(figures["true"], torch.stack([rows[0]["features"]]))
    torch.testing.assert_close(figures["none"], figures["true"], rtol=1e-3, atol=1e-4)
    mean = torch.stack([row["features"] for row in rows[1 : 1 + MAX_OTHERS]]).mean(0)
    assert figures["mean"].tolist() == pytest.approx(mean.tolist())
