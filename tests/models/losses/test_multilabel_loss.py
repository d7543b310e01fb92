"""The loss of several findings against sums by hand: what was not labelled counts nowhere."""

from __future__ import annotations

from math import log

import pytest
import torch

from medfed.errors import StudyError
from medfed.models.losses.binary_cross_entropy import BinaryCrossEntropy
from medfed.models.losses.multilabel_cross_entropy import MultilabelCrossEntropy
from medfed.models.tasks.multilabel import Multilabel

NAN = torch.nan
# sigmoid(log 3) = 3/4.
LOGITS = torch.tensor([[log(3.0), 0.0], [-log(3.0), log(3.0)]])


def test_the_mean_is_over_labelled_findings_only() -> None:
    target = torch.tensor([[1.0, NAN], [0.0, 0.0]])
    # By hand: -log 3/4, -log 3/4 and -log 1/4 over three labelled findings.
    expected = (2 * log(4 / 3) + log(4)) / 3
    assert MultilabelCrossEntropy().build(2)(LOGITS, target).item() == pytest.approx(expected)


def test_weights_are_per_finding_and_positive_per_image_that_shows_it() -> None:
    target = torch.tensor([[1.0, NAN], [0.0, 0.0]])
    loss = MultilabelCrossEntropy(weights=(1.0, 3.0), positive=(5.0, 1.0)).build(2)
    # (1 * 5 * log 4/3 + 1 * log 4/3 + 3 * log 4) / (1 + 1 + 3)
    assert loss(LOGITS, target).item() == pytest.approx((6 * log(4 / 3) + 3 * log(4)) / 5)


def test_what_was_not_labelled_has_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    MultilabelCrossEntropy().build(2)(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]])).backward()
    # d/dx of binary cross entropy is sigmoid(x) - y, over two labelled findings.
    assert torch.allclose(logits.grad, torch.tensor([[-0.25, 0.0], [0.0, 0.75]]) / 2)


def test_a_batch_without_a_labelled_finding_changes_nothing() -> None:
    logits = LOGITS.clone().requires_grad_()
    value = MultilabelCrossEntropy().build(2)(logits, torch.full((2, 2), NAN))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (MultilabelCrossEntropy(weights=(1.0,)), "1 weights for 2 classes"),
        (MultilabelCrossEntropy(positive=(1.0, 2.0, 3.0)), "positive has 3 weights for 2 findings"),
        (MultilabelCrossEntropy(positive=(1.0, 0.0)), "each weight in positive must be above 0"),
        (BinaryCrossEntropy(), "loss 'binary_cross_entropy' is for classify and table"),
    ],
)
def test_a_loss_that_does_not_fit_the_findings_is_refused(loss, message) -> None:
    with pytest.raises(StudyError, match=message):
        Multilabel(classes=("effusion", "nodule"), loss=loss)


@pytest.mark.parametrize("classes", [(), ("effusion", "effusion"), ("",)])
def test_findings_need_names_of_their_own(classes) -> None:
    with pytest.raises(StudyError, match="classes"):
        Multilabel(classes=classes)
