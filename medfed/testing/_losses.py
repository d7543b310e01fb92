"""The contract of a loss: finite, smaller along its gradient, and without tensors of its own."""

from __future__ import annotations

import pickle
from typing import get_args

import torch
from torch import Tensor, nn

from medfed.models.losses import Loss
from medfed.models.tasks import Needs
from medfed.testing._contract import OF_EVERY_KIND, Contract

check_loss: Contract[Loss] = Contract("loss", OF_EVERY_KIND)

CLASSES = 2


def target_and_shape(loss: Loss, needs: Needs) -> tuple[Tensor, tuple[int, ...]]:
    """Return a target for one of the tasks that a loss serves, and the shape of the logits."""
    outputs = loss.outputs(CLASSES)
    if needs == "segment":
        return (torch.arange(2 * 64) % 2).reshape(2, 1, 4, 4, 4).to(torch.uint8), (2, outputs, 4, 4, 4)
    if needs == "survival":
        return torch.tensor([[3.0, 1], [1, 1], [2, 0], [2, 1]]), (4, outputs)
    if needs == "multilabel":
        return torch.tensor([[0.0, 1], [1, torch.nan], [1, 0], [0, 0]]), (4, outputs)
    return torch.tensor([0, 1, 1, 0]), (4, outputs)


def logits_of(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()


@check_loss.check
def it_says_which_tasks_it_serves(loss: Loss) -> None:
    assert loss.serves
    assert set(loss.serves) <= set(get_args(Needs))


@check_loss.check
def following_its_gradient_makes_it_smaller(loss: Loss) -> None:
    for needs in loss.serves:
        target, shape = target_and_shape(loss, needs)
        criterion, logits = loss.build(CLASSES), logits_of(shape)
        first = criterion(logits, target)
        assert first.shape == (), needs
        assert torch.isfinite(first), needs
        optimiser = torch.optim.SGD([logits], lr=1.0)
        for _ in range(200):
            optimiser.zero_grad()
            value = criterion(logits, target)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
        assert value.item() < 0.9 * first.item(), needs


@check_loss.check
def it_holds_no_tensor_that_a_module_would_save(loss: Loss) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = loss.build(CLASSES)

    assert Holder().state_dict() == {}


@check_loss.check
def it_can_be_pickled_for_a_spawned_process(loss: Loss) -> None:
    for needs in loss.serves:
        target, shape = target_and_shape(loss, needs)
        criterion, logits = loss.build(CLASSES), logits_of(shape)
        copy = pickle.loads(pickle.dumps(criterion))
        assert torch.equal(copy(logits, target), criterion(logits, target)), needs


@check_loss.check
def it_and_its_gradient_are_finite_for_confident_predictions(loss: Loss) -> None:
    for needs in loss.serves:
        target, shape = target_and_shape(loss, needs)
        for scale in (1e-4, 30.0, 3e3):
            logits = logits_of(shape, scale).detach().requires_grad_()
            value = loss.build(CLASSES)(logits, target)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            assert torch.isfinite(value), f"{needs} at logits of {scale:g}"
            assert logits.grad is not None
            assert torch.isfinite(logits.grad).all(), f"{needs} at logits of {scale:g}"
