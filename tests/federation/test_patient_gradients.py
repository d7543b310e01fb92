"""Gradients of single patients by hand: alone or together, averaged over copies, and clipped as a whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medfed.federation.patient_gradients import (
    alike,
    clipped_sum,
    many_gradients,
    mean_over_copies,
    single_gradient,
)

# Items 0 to 5 of three patients: two visits, one, three.
ITEMS = [(0, 1), (2,), (3, 4, 5)]
# Mean rows of the patients: (3, 4) of length 5, (0.3, 0.4) of length 0.5, (-1, 0) of length 1.
TABLE = torch.tensor([[2.0, 4.0], [4.0, 4.0], [0.3, 0.4], [-2.0, 1.0], [-1.0, -2.0], [0.0, 1.0]])


class Line(nn.Module):
    """The loss is the mean of w . x, so a patient's gradient is the mean of their rows."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def training_step(self, batch, index):
        return (batch[0] @ self.w).mean()


class Logged(Line):
    """The same with a loss of its own, which lets patients go through together."""

    def loss(self, batch):
        return (batch[0] @ self.w).mean()


@pytest.mark.parametrize("module", [Line, Logged])
@pytest.mark.parametrize("clip", [0.25, 1.0, 7.0])
def test_removing_a_patient_of_several_cases_changes_the_clipped_sum_by_at_most_the_clip(module, clip):
    model = module()
    batches = [(TABLE[list(items)],) for items in ITEMS]
    whole = clipped_sum(*gradients(model, batches), clip)
    for gone in range(3):
        left = clipped_sum(*gradients(model, [b for number, b in enumerate(batches) if number != gone]), clip)
        change = math.sqrt(sum(float((a - b).pow(2).sum()) for a, b in zip(whole, left, strict=True)))
        length = float(TABLE[list(ITEMS[gone])].mean(0).norm())
        assert change <= clip * (1 + 1e-6)
        assert change == pytest.approx(min(length, clip), rel=2e-5)


def gradients(model, batches):
    each = [single_gradient(model, batch)[0] for batch in batches]
    return ([torch.cat(parts) for parts in zip(*each, strict=True)],)


def test_a_patient_is_clipped_over_all_tensors_together_and_not_one_by_one():
    one = [torch.tensor([[3.0]]), torch.tensor([[0.0, 4.0]])]
    total = clipped_sum(one, 1.0)
    expected = [torch.tensor([0.6]).double(), torch.tensor([0.0, 0.8]).double()]
    torch.testing.assert_close(total, expected, rtol=2e-5, atol=0)


def test_a_sum_keeps_what_a_float32_sum_rounds_away():
    # 1/2 + 2^-30 needs 29 bits, float32 has 24: there the second patient would be lost, or doubled.
    (total,) = clipped_sum([torch.tensor([[0.5], [2.0**-30]])], 1.0)
    assert float(total) == 0.5 + 2.0**-30


@pytest.mark.parametrize("length", [1.0, 1.0 - 1e-6, 7.0])
def test_a_patient_at_the_clip_leaves_room_for_rounding(length):
    (total,) = clipped_sum([torch.tensor([[length]], dtype=torch.float64)], 1.0)
    assert float(total) == pytest.approx(1 - 1e-5, rel=1e-12)


def test_a_gradient_that_is_not_finite_counts_as_none():
    two = [torch.tensor([[float("nan"), 1.0], [0.3, 0.4]]), torch.tensor([[float("inf")], [0.0]])]
    expected = [torch.tensor([0.3, 0.4]).double(), torch.zeros(1).double()]
    torch.testing.assert_close(clipped_sum(two, 1.0), expected)


def test_several_at_once_are_each_alone():
    torch.manual_seed(0)
    model = Logged()
    batches = [(torch.randn(3, 2),) for _ in range(4)]
    result, losses = many_gradients(model, batches)
    for number, batch in enumerate(batches):
        alone, loss = single_gradient(model, batch)
        torch.testing.assert_close(result[0][number : number + 1], alone[0])
        torch.testing.assert_close(losses[number], loss)


# ----------------------------------------------------------------------------------------- several copies


def one_by_one(model):
    return lambda copy: single_gradient(model, copy[0])


def together(model):
    return lambda copies: many_gradients(model, copies)


def copy_of(*rows):
    return (torch.tensor(rows),)


@pytest.mark.parametrize("module, way", [(Line, one_by_one), (Logged, one_by_one), (Logged, together)])
@pytest.mark.parametrize("copies", [1, 2, 4, 8])
def test_equal_copies_have_the_gradient_of_one(module, way, copies):
    model, batch = module(), copy_of([0.25, -1.75], [2.5, 0.125])
    alone, loss = single_gradient(model, batch)
    mean, losses = mean_over_copies(way(model), [[batch] * copies])
    # Numbers of few bits: neither their sums nor the division rounds.
    assert torch.equal(mean[0], alone[0])
    assert torch.equal(losses.reshape(()), loss)


@pytest.mark.parametrize("module, way", [(Line, one_by_one), (Logged, together)])
def test_a_patient_is_clipped_after_the_mean_over_copies_by_hand(module, way):
    # Copies (3, 4) and (-1, 0): the mean is (1, 2), clipped to (1, 2) / root of 5. Clipped first, they would
    # give (0.6 - 1, 0.8 + 0) / 2 = (-0.2, 0.4).
    mean, losses = mean_over_copies(way(module()), [[copy_of([3.0, 4.0]), copy_of([-1.0, 0.0])]])
    torch.testing.assert_close(mean[0], torch.tensor([[1.0, 2.0]]))
    assert float(losses.reshape(())) == pytest.approx((7 - 1) / 2)  # w is (1, 1)
    (total,) = clipped_sum(mean, 1.0)
    expected = torch.tensor([1.0, 2.0]).double() / math.sqrt(5)
    torch.testing.assert_close(total, expected, rtol=2e-5, atol=0)


def test_patients_that_go_through_together_keep_their_own_copies():
    # Of patient a (1, 0) and (3, 0), of b (0, 2) and (0, 6): means (2, 0) and (0, 4).
    patients = [
        [copy_of([1.0, 0.0]), copy_of([3.0, 0.0])],
        [copy_of([0.0, 2.0]), copy_of([0.0, 6.0])],
    ]
    mean, losses = mean_over_copies(together(Logged()), patients)
    torch.testing.assert_close(mean[0], torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(losses, torch.tensor([2.0, 4.0]))


@pytest.mark.parametrize("clip", [0.25, 1.0, 7.0])
@pytest.mark.parametrize("copies", [2, 5])
def test_removing_a_patient_of_several_copies_changes_the_clipped_sum_by_at_most_the_clip(copies, clip):
    model, generator = Line(), torch.Generator().manual_seed(0)
    patients = [[(9 * torch.randn(3, 2, generator=generator),) for _ in range(copies)] for _ in range(4)]
    each = [mean_over_copies(one_by_one(model), [patient])[0][0] for patient in patients]
    (whole,) = clipped_sum([torch.cat(each)], clip)
    for gone in range(4):
        (left,) = clipped_sum([torch.cat([one for n, one in enumerate(each) if n != gone])], clip)
        length = float(torch.stack([batch[0].mean(0) for batch in patients[gone]]).mean(0).norm())
        assert float((whole - left).norm()) == pytest.approx(min(length, clip), rel=2e-5)


def test_a_copy_that_is_not_finite_takes_the_patient_and_no_other():
    broken = [copy_of([float("inf"), 0.0]), copy_of([1.0, 0.0])]
    whole = [copy_of([0.5, 0.0]), copy_of([0.1, 0.0])]
    mean, _ = mean_over_copies(together(Logged()), [broken, whole])
    torch.testing.assert_close(clipped_sum(mean, 1.0), [torch.tensor([0.3, 0.0]).double()])


def test_one_tensor_that_autograd_returns_for_two_parameters_is_not_added_to_twice():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

        def training_step(self, batch, index):
            return (batch[0] @ (self.a + self.b)).mean()

    mean, _ = mean_over_copies(one_by_one(Sum()), [[copy_of([2.0, 4.0]), copy_of([4.0, 0.0])]])
    torch.testing.assert_close(mean, [torch.tensor([[3.0, 2.0]])] * 2)


def test_only_patients_all_of_whose_copies_have_the_same_shapes_go_through_together():
    small, large = copy_of([1.0, 0.0]), copy_of([1.0, 0.0], [0.0, 1.0])
    patients = [[small, small], [small, large], [small, small], [small, large], [small, small]]
    assert [len(group) for group in alike(patients, 2)] == [2, 1, 2]
