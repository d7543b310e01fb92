"""Losses against values worked out by hand, or by an independent path."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from medfed.errors import StudyError
from medfed.models.losses.binary_cross_entropy import BinaryCrossEntropy
from medfed.models.losses.cox import Cox
from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.losses.dice import Dice
from medfed.models.losses.dicece import DiceCE
from medfed.models.losses.dicefocal import DiceFocal
from medfed.models.losses.focal import Focal
from medfed.models.losses.tversky import Tversky

# Four voxels: the predicted probability of the lesion, and the lesion.
P = (0.8, 0.6, 0.4, 0.4)
Y = (1, 1, 0, 0)
CE = -(log(0.8) + log(0.6) + log(0.6) + log(0.6)) / 4
FOCAL = -(0.2**2 * log(0.8) + 3 * 0.4**2 * log(0.6)) / 4
# 2 * (.8 + .6) over (.8 + .6 + .4 + .4) + 2
DICE = 2 * 1.4 / 4.2
# In both 1.4, false .8, missed .6
TVERSKY = 1.4 / (1.4 + 0.3 * 0.8 + 0.7 * 0.6)


def volume(p: tuple[float, ...] = P, y: tuple[int, ...] = Y) -> tuple[Tensor, Tensor]:
    """Return logits (1, 2, n, 1, 1) whose softmax is p, and the label."""
    lesion = torch.tensor(p)
    logits = torch.stack([1 - lesion, lesion]).log().reshape(1, 2, -1, 1, 1)
    return logits, torch.tensor(y).reshape(1, 1, -1, 1, 1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CrossEntropy(), CE),
        (Focal(gamma=2), FOCAL),
        (Focal(gamma=0), CE),
        (Dice(), 1 - DICE),
        (Tversky(), 1 - TVERSKY),
        (Tversky(false_positives=0.5, missed=0.5), 1 - DICE),
        (DiceCE(), 1 - DICE + CE),
        (DiceCE(dice=0.5, cross_entropy=2), 0.5 * (1 - DICE) + 2 * CE),
        (DiceFocal(), 1 - DICE + FOCAL),
        (DiceFocal(dice=0, focal=3), 3 * FOCAL),
    ],
)
def test_segmentation_by_hand(loss, expected) -> None:
    assert float(loss.build(2)(*volume())) == pytest.approx(expected, rel=1e-4)


def test_background_counts_where_asked_for() -> None:
    # Background: probabilities .2 .4 .6 .6, reference 0 0 1 1.
    background = 2 * 1.2 / (1.8 + 2)
    assert float(Dice(background=True).build(2)(*volume())) == pytest.approx(
        1 - (DICE + background) / 2, rel=1e-4
    )


def test_a_batch_is_summed_before_it_is_divided() -> None:
    """A patch without a lesion has a loss of 1 alone; in a batch it only adds its voxels."""
    logits, label = volume()
    empty_logits, empty = volume((0.2, 0.2, 0.2, 0.2), (0, 0, 0, 0))
    both, labels = torch.cat([logits, empty_logits]), torch.cat([label, empty])
    assert float(Dice(batch=True).build(2)(both, labels)) == pytest.approx(
        1 - 2.8 / (2.2 + 0.8 + 2), rel=1e-4
    )
    assert float(Dice(batch=False).build(2)(both, labels)) == pytest.approx((1 - DICE + 1) / 2, rel=1e-4)


def test_cross_entropy_of_images_with_weights_and_smoothing() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))
    target = torch.tensor([0, 2])
    weighted = -(2 * log(0.7) + 5 * log(0.6)) / 7
    assert float(CrossEntropy(weights=(2, 1, 5)).build(3)(logits, target)) == pytest.approx(weighted)
    # A tenth of the target is spread over the three classes.
    first = -(0.9 * log(0.7) + 0.1 / 3 * (log(0.7) + log(0.2) + log(0.1)))
    second = -(0.9 * log(0.6) + 0.1 / 3 * (log(0.1) + log(0.3) + log(0.6)))
    assert float(CrossEntropy(smoothing=0.1).build(3)(logits, target)) == pytest.approx((first + second) / 2)
    # Focal's weights don't change what the sum is divided by.
    focal = -(2 * 0.3**2 * log(0.7) + 5 * 0.4**2 * log(0.6)) / 2
    assert float(Focal(weights=(2, 1, 5)).build(3)(logits, target)) == pytest.approx(focal)


def test_one_output_is_the_sigmoid_and_half_as_steep_as_two() -> None:
    z = torch.tensor([[0.3], [-1.2]], requires_grad=True)
    two = torch.tensor([[0.0, 0.3], [0.0, -1.2]], requires_grad=True)
    target = torch.tensor([1, 0])
    one_output = BinaryCrossEntropy().build(2)(z, target)
    two_outputs = CrossEntropy().build(2)(two, target)
    p = 1 / (1 + np.exp(-np.array([0.3, -1.2])))
    assert float(one_output.detach()) == pytest.approx(-(np.log(p[0]) + np.log(1 - p[1])) / 2, rel=1e-6)
    assert float(one_output.detach()) == pytest.approx(float(two_outputs.detach()), rel=1e-6)
    one_output.backward()
    two_outputs.backward()
    # A gradient step changes the difference of two outputs by twice what it changes the one output by.
    assert torch.allclose(two.grad[:, 1] - two.grad[:, 0], 2 * z.grad[:, 0])
    heavier = BinaryCrossEntropy(positive=3).build(2)(z, target)
    assert float(heavier.detach()) == pytest.approx(-(3 * np.log(p[0]) + np.log(1 - p[1])) / 2, rel=1e-6)


def test_settings_that_do_not_fit_the_classes_are_refused() -> None:
    with pytest.raises(StudyError, match="'cross_entropy': 2 weights for 3 classes"):
        CrossEntropy(weights=(1, 2)).build(3)
    with pytest.raises(StudyError, match="'focal': weights must not be negative"):
        Focal(weights=(1, -2)).build(2)
    with pytest.raises(StudyError, match="'binary_cross_entropy': the task has 3 classes"):
        BinaryCrossEntropy().build(3)


def partial_likelihood(risk, time, event, efron: bool) -> float:
    """Return the sum over event times, written as in the papers."""
    total = 0.0
    for moment in sorted(set(time[event == 1])):
        dying = (time == moment) & (event == 1)
        at_risk = np.exp(risk[time >= moment]).sum()
        deaths = int(dying.sum())
        for number in range(deaths):
            share = number / deaths if efron else 0.0
            total += np.log(at_risk - share * np.exp(risk[dying]).sum())
        total -= risk[dying].sum()
    return total


def test_cox_of_three_patients_by_hand() -> None:
    """Times 1, 2, 3 with events at 1 and 3: all are at risk at 1, only the last at 3."""
    target = torch.tensor([[2.0, 0], [1, 1], [3, 1]])
    logits = torch.tensor([[0.5], [0.1], [-0.4]])
    expected = np.log(np.exp(0.5) + np.exp(0.1) + np.exp(-0.4)) - 0.1
    assert float(Cox().build(1)(logits, target)) == pytest.approx(expected / 2)
    assert float(Cox(per="examples").build(1)(logits, target)) == pytest.approx(expected / 3)


def test_cox_of_a_tie_by_hand() -> None:
    """Two events at one time and a later patient: Breslow uses the risk set twice, Efron omits half."""
    target = torch.tensor([[1.0, 1], [1, 1], [2, 0]])
    logits = torch.tensor([[0.0], [np.log(2.0)], [np.log(3.0)]], dtype=torch.float64)
    breslow = 2 * np.log(6) - np.log(2)
    efron = np.log(6) + np.log(6 - 0.5 * 3) - np.log(2)
    assert float(Cox(ties="breslow").build(1)(logits, target)) == pytest.approx(breslow / 2)
    assert float(Cox(ties="efron").build(1)(logits, target)) == pytest.approx(efron / 2)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("seed", range(20))
def test_cox_of_many_ties_and_its_gradient(ties, seed) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 30))
    risk, time, event = draw.normal(size=n), draw.integers(1, 8, n).astype(float), draw.integers(0, 2, n)
    event[0] = 1
    logits = torch.tensor(risk[:, None], requires_grad=True)
    target = torch.tensor(np.stack([time, event], 1))
    loss = Cox(ties=ties).build(1)(logits, target)
    assert float(loss.detach()) == pytest.approx(
        partial_likelihood(risk, time, event, ties == "efron") / event.sum()
    )
    assert torch.autograd.gradcheck(lambda z: Cox(ties=ties).build(1)(z, target), logits)


def test_cox_of_censored_patients_only_is_nothing_to_learn_from() -> None:
    logits = torch.randn(4, 1, requires_grad=True)
    loss = Cox().build(1)(logits, torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_focal_of_a_certain_answer_has_a_gradient_for_any_power() -> None:
    logits = torch.tensor([[500.0, -500.0], [0.0, 0.0]], requires_grad=True)
    Focal(gamma=0.5).build(2)(logits, torch.tensor([0, 1])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
