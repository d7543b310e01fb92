"""Optimisers against steps worked out by hand."""

from __future__ import annotations

import pytest
import torch

from medfed.errors import StudyError
from medfed.models.optimisers.adam import Adam
from medfed.models.optimisers.adamw import AdamW
from medfed.models.optimisers.sgd import SGD


def after(optimiser, gradients: list[float], start: float = 2.0) -> float:
    parameter = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = optimiser.build([parameter])
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    return float(parameter.detach())


def test_sgd() -> None:
    assert after(SGD(lr=0.1), [3.0, 1.0]) == pytest.approx(2 - 0.3 - 0.1)


def test_sgd_with_momentum_and_decay() -> None:
    # First step: 3 + decay .5 * 2 = 4. Second: 1 + .5 * 1.6 = 1.8, and the velocity is .9 * 4 + 1.8 = 5.4.
    assert after(SGD(lr=0.1, momentum=0.9, weight_decay=0.5), [3.0, 1.0]) == pytest.approx(2 - 0.4 - 0.54)


def test_nesterov_needs_momentum() -> None:
    # The step is the gradient plus momentum times the velocity: 3 + .9 * 3.
    assert after(SGD(lr=0.1, momentum=0.9, nesterov=True), [3.0]) == pytest.approx(2 - 0.1 * 5.7)
    with pytest.raises(StudyError, match="nesterov needs momentum"):
        SGD(nesterov=True).build([])


def test_adams_first_step_is_the_rate_whatever_the_gradient() -> None:
    assert after(Adam(lr=0.1), [3.0]) == pytest.approx(1.9)
    assert after(Adam(lr=0.1), [-300.0]) == pytest.approx(2.1)


def test_adamw_shrinks_the_weight_and_adam_its_gradient() -> None:
    assert after(AdamW(lr=0.1, weight_decay=0.5), [3.0]) == pytest.approx(2 * (1 - 0.05) - 0.1)
    # The L2 term turns a gradient of -0.5 into +0.5.
    assert after(Adam(lr=0.1, weight_decay=0.5), [-0.5]) == pytest.approx(1.9)
