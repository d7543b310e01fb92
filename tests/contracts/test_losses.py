"""What every loss keeps: it is finite, gets smaller along its gradient, and has no tensors of its own.

The losses are those the folder holds, so a new file is held to this without an edit here.
"""

from __future__ import annotations

import pickle
from typing import get_args

import msgspec
import pytest
import torch
from torch import Tensor, nn

from medfed import registry as kinds
from medfed.models.losses import Loss
from medfed.models.tasks import Needs

torch.set_num_threads(1)

LOSSES = kinds.kinds("losses")
PAIRS = [(name, needs) for name, record in LOSSES.items() for needs in record.serves]  # type: ignore[attr-defined]
CLASSES = 2


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def loss_and_target(request: pytest.FixtureRequest) -> tuple[Loss, Tensor, tuple[int, ...]]:
    """Return a loss, a target of one of the tasks it serves, and the shape of the logits."""
    name, needs = request.param
    loss: Loss = LOSSES[name]()  # type: ignore[assignment]
    outputs = loss.outputs(CLASSES)
    if needs == "segment":
        return loss, (torch.arange(2 * 64) % 2).reshape(2, 1, 4, 4, 4).to(torch.uint8), (2, outputs, 4, 4, 4)
    if needs == "survival":
        return loss, torch.tensor([[3.0, 1], [1, 1], [2, 0], [2, 1]]), (4, outputs)
    return loss, torch.tensor([0, 1, 1, 0]), (4, outputs)


def test_it_says_which_tasks_it_serves() -> None:
    for record in LOSSES.values():
        assert set(record.serves) <= set(get_args(Needs))  # type: ignore[attr-defined]
        assert record.serves, record  # type: ignore[attr-defined]


def test_a_study_file_can_hold_it(loss_and_target) -> None:
    loss = loss_and_target[0]
    assert msgspec.json.decode(msgspec.json.encode(loss), type=type(loss)) == loss


def test_following_its_gradient_makes_it_smaller(loss_and_target) -> None:
    loss, target, shape = loss_and_target
    criterion = loss.build(CLASSES)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first = criterion(logits, target)
    assert first.shape == ()
    assert torch.isfinite(first)
    optimiser = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        value = criterion(logits, target)
        value.backward()
        optimiser.step()
    assert value.item() < 0.9 * first.item()


def test_it_holds_no_tensor_that_a_module_would_save(loss_and_target) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = loss_and_target[0].build(CLASSES)

    assert Holder().state_dict() == {}


def test_it_can_be_pickled_for_a_spawned_process(loss_and_target) -> None:
    loss, target, shape = loss_and_target
    criterion = loss.build(CLASSES)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pickle.loads(pickle.dumps(criterion))(logits, target), criterion(logits, target))


@pytest.mark.parametrize("scale", [1e-4, 30.0, 3e3])
def test_it_and_its_gradient_are_finite_for_very_sure_answers(loss_and_target, scale) -> None:
    loss, target, shape = loss_and_target
    logits = (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = loss.build(CLASSES)(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
