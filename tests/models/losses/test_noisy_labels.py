"""The losses for noisy labels: values by hand, limits, and less memorised wrong labels than cross entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.losses.generalised_cross_entropy import GeneralisedCrossEntropy
from medfed.models.losses.symmetric_cross_entropy import SymmetricCrossEntropy

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 2])


def chosen() -> np.ndarray:
    e = np.exp(LOGITS.numpy())
    return (e / e.sum(1, keepdims=True))[[0, 1], TARGET.numpy()]


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_generalised_cross_entropy_is_the_papers_formula(q: float) -> None:
    result = GeneralisedCrossEntropy(q=q).build(3)(LOGITS, TARGET)
    assert float(result) == pytest.approx(float(((1 - chosen() ** q) / q).mean()), rel=1e-12)


def test_generalised_cross_entropy_weighs_classes() -> None:
    each = (1 - chosen() ** 0.7) / 0.7
    result = GeneralisedCrossEntropy(weights=(1, 1, 3)).build(3)(LOGITS, TARGET)
    assert float(result) == pytest.approx((each[0] + 3 * each[1]) / 4, rel=1e-12)


def test_its_limits_are_cross_entropy_and_the_mean_absolute_error() -> None:
    small = float(GeneralisedCrossEntropy(q=1e-7).build(3)(LOGITS, TARGET))
    assert small == pytest.approx(float(functional.cross_entropy(LOGITS, TARGET)), rel=1e-5)
    absolute = float(GeneralisedCrossEntropy(q=1.0).build(3)(LOGITS, TARGET))
    assert absolute == pytest.approx(float((1 - chosen()).mean()), rel=1e-12)


def test_symmetric_cross_entropy_by_sums_over_classes() -> None:
    # The reversed cross entropy written out: -sum_k p_k log q_k, log q_k = 0 at the label, A elsewhere.
    e = np.exp(LOGITS.numpy())
    p = e / e.sum(1, keepdims=True)
    log_q = np.full((2, 3), -4.0)
    log_q[[0, 1], TARGET.numpy()] = 0
    expected = 0.1 * -np.log(chosen()).mean() + 1.0 * -(p * log_q).sum(1).mean()
    assert float(SymmetricCrossEntropy().build(3)(LOGITS, TARGET)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "loss", [GeneralisedCrossEntropy(), GeneralisedCrossEntropy(q=0.1), SymmetricCrossEntropy()]
)
def test_a_certain_answer_right_or_wrong_has_a_finite_gradient(loss) -> None:
    logits = torch.tensor([[500.0, -500.0], [500.0, -500.0]], requires_grad=True)
    value = loss.build(2)(logits, torch.tensor([0, 1]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_a_volume_is_the_mean_over_its_voxels() -> None:
    logits = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.randint(0, 3, (2, 1, 2, 2, 2), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    rows, numbers = logits.movedim(1, -1).reshape(-1, 3), label.reshape(-1).long()
    for loss in (GeneralisedCrossEntropy(), SymmetricCrossEntropy()):
        assert float(loss.build(3)(logits, label)) == pytest.approx(
            float(loss.build(3)(rows, numbers)), rel=1e-12
        )


@pytest.mark.parametrize("loss", [GeneralisedCrossEntropy(), SymmetricCrossEntropy(alpha=0.01)])
def test_a_doubted_label_pulls_less_against_a_certain_answer_than_with_cross_entropy(loss) -> None:
    # The model gives class 0 a logit of 5; one example says class 1. What fraction of an undecided example's
    # pull has it?
    def pull(criterion, logit: float) -> float:
        logits = torch.tensor([[logit, 0.0]], dtype=torch.float64, requires_grad=True)
        criterion(logits, torch.tensor([1])).backward()
        return float(logits.grad.abs().max())

    usual, robust = CrossEntropy().build(2), loss.build(2)
    assert pull(usual, 5.0) / pull(usual, 0.0) == pytest.approx(1.99, abs=0.01)
    assert pull(robust, 5.0) / pull(robust, 0.0) < 0.15


@pytest.mark.parametrize("loss", [GeneralisedCrossEntropy(), SymmetricCrossEntropy()])
def test_with_two_fifths_of_labels_wrong_the_answer_is_surer_of_the_majority(loss) -> None:
    # 100 examples of one kind, 60 right: cross entropy ends at the share of the labels, 0.6; these go
    # to the majority.
    labels = (torch.arange(100) >= 60).long()

    def ends_at(criterion) -> float:
        logits = torch.tensor([[0.1, 0.0]], dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD([logits], lr=1.0)
        for _ in range(2000):
            optimiser.zero_grad()
            criterion(logits.expand(100, 2), labels).backward()
            optimiser.step()
        return float(logits.detach().softmax(1)[0, 0])

    assert ends_at(CrossEntropy().build(2)) == pytest.approx(0.6, abs=1e-3)
    assert ends_at(loss.build(2)) > 0.75
