"""Which blocks of an image are hidden, what stands there instead, and what the error is over."""

from __future__ import annotations

import pytest
import torch

from medfed.errors import StudyError
from medfed.models.tasks._masking import (
    absolute,
    draw_masks,
    hidden_blocks,
    hidden_errors,
    hide,
    squared,
    visible_mean,
)


def test_whole_blocks_are_hidden_and_as_many_in_each_image() -> None:
    masks = draw_masks(50, (8, 12, 5), block=4, share=0.5)
    # 2 x 3 x 2 blocks, of which the last along z are one voxel thick.
    assert masks.shape == (50, 1, 8, 12, 5)
    blocks = masks[:, 0, ::4, ::4, ::4]
    assert blocks.shape == (50, 2, 3, 2)
    assert (blocks.flatten(1).sum(1) == 6).all()
    for x, y, z in torch.cartesian_prod(torch.arange(8), torch.arange(12), torch.arange(5)).tolist():
        assert torch.equal(masks[:, 0, x, y, z], blocks[:, x // 4, y // 4, z // 4])


def test_each_block_is_hidden_as_often() -> None:
    torch.manual_seed(0)
    often = draw_masks(4000, (3, 2), block=1, share=1 / 3).double().mean(0)
    # 2 of 6 blocks; the deviation of a mean over 4000 is 0.0075.
    assert torch.allclose(often, torch.full_like(often, 1 / 3), atol=0.03)


def test_masks_follow_from_a_generator_or_from_torchs_own_state() -> None:
    drawn = [draw_masks(3, (8, 8), 2, 0.5, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*drawn)
    torch.manual_seed(1)
    first = draw_masks(3, (8, 8), 2, 0.5)
    assert not torch.equal(first, draw_masks(3, (8, 8), 2, 0.5))
    torch.manual_seed(1)
    assert torch.equal(first, draw_masks(3, (8, 8), 2, 0.5))


@pytest.mark.parametrize(
    ("number", "share", "hidden"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.75, 8), (3, 0.5, 2)]
)
def test_something_is_hidden_and_something_is_not(number: int, share: float, hidden: int) -> None:
    assert hidden_blocks(number, share) == hidden


def test_a_block_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(
        StudyError, match=r"task\.block: a block of 8 voxels .* covers a whole .* 8 x 6; take a"
    ):
        draw_masks(1, (8, 6), 8, 0.5)


IMAGE = torch.tensor([[[1.0, 3.0, 10.0, 20.0]], [[2.0, 2.0, 0.0, 4.0]]])  # (B, C, X)
MASK = torch.tensor([[[False, False, True, True]], [[True, False, False, False]]])


def test_hidden_voxels_get_the_mean_of_the_visible_ones_of_their_image() -> None:
    assert visible_mean(IMAGE, MASK).flatten().tolist() == [2.0, 2.0]
    assert hide(IMAGE, MASK).tolist() == [[[1, 3, 2, 2]], [[2, 2, 0, 4]]]


def test_what_is_hidden_leaves_no_trace_in_the_input() -> None:
    changed = torch.where(MASK, torch.full_like(IMAGE, 99.0), IMAGE)
    assert torch.equal(hide(changed, MASK), hide(IMAGE, MASK))


def test_the_error_is_over_hidden_voxels_alone_each_image_by_itself() -> None:
    output = torch.tensor([[[0.0, 0.0, 12.0, 16.0]], [[5.0, 0.0, 9.0, 9.0]]])
    # |12 - 10|, |16 - 20| of the first image; |5 - 2| of the second.
    assert hidden_errors(output, IMAGE, MASK, absolute).tolist() == [3.0, 3.0]
    assert hidden_errors(output, IMAGE, MASK, squared).tolist() == [10.0, 9.0]


def test_channels_share_the_mask_and_count_alike() -> None:
    image = torch.tensor([[[1.0, 5.0], [2.0, 8.0]]])
    mask = torch.tensor([[[False, True]]])
    assert hide(image, mask).tolist() == [[[1, 1], [2, 2]]]
    # |1 - 5| and |2 - 8|.
    assert hidden_errors(hide(image, mask), image, mask, absolute).tolist() == [5.0]


def test_visible_voxels_have_no_gradient() -> None:
    output = torch.zeros_like(IMAGE, requires_grad=True)
    hidden_errors(output, IMAGE, MASK, squared).sum().backward()
    assert output.grad is not None
    assert (output.grad[~MASK] == 0).all()
    # d/do (o - x)^2 / hidden: -2 * 10 / 2, -2 * 20 / 2 and -2 * 2 / 1.
    assert output.grad[MASK].tolist() == [-10.0, -20.0, -4.0]
