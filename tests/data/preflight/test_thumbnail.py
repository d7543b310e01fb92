"""The thumbnail shows the right slice the right way round, whatever the order of the axes in the file."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread

from medfed.data.preflight.thumbnail import THUMBNAIL_PIXELS, thumbnail
from medfed.data.volume import Volume


def picture(array, affine, label=None):
    png = base64.b64decode(thumbnail(Volume(array[None].astype(np.float32), affine), label))
    return imread(io.BytesIO(png))[..., :3]


def marked(spacing=(1.0, 1.0, 1.0)):
    """A patient whose right front is bright in the middle slice, with axes to the right, front and up."""
    array = np.zeros((8, 8, 5))
    array[4:, 4:, 2] = 100
    return array, np.diag([*spacing, 1.0])


def quadrants(shown):
    rows, columns = shown.shape[0] // 2, shown.shape[1] // 2
    return [[shown[:rows, :columns, 0].mean() > 0.5, shown[:rows, columns:, 0].mean() > 0.5],
            [shown[rows:, :columns, 0].mean() > 0.5, shown[rows:, columns:, 0].mean() > 0.5]]  # fmt: skip


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1,), (0, 1)])
def test_the_patients_right_front_is_at_the_upper_left(axes, flips):
    array, affine = marked()
    for axis in flips:
        array = np.flip(array, axis)
        affine = affine @ np.diag([-1.0 if axis == one else 1.0 for one in range(3)] + [1.0])
    turned = affine[:, [*axes, 3]]
    assert quadrants(picture(array.transpose(axes), turned)) == [[True, False], [False, False]]


def test_voxels_that_are_not_cubes_are_drawn_in_mm():
    assert picture(*marked()).shape == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS, 3)
    # 8 voxels of 1 mm to the right, of 2 mm to the front.
    assert picture(*marked((1.0, 2.0, 1.0))).shape == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS // 2, 3)


def test_the_slice_is_the_one_with_the_largest_label_and_the_label_is_amber():
    array, affine = marked()
    label = np.zeros(array.shape, np.uint8)
    label[:4, :4, 4] = 1
    label[0, 0, 2] = 1
    shown = picture(array, affine, label)
    # Slice 4 is dark but for the label at the patient's left back, which is the lower right.
    lower_right = shown[THUMBNAIL_PIXELS // 2 :, THUMBNAIL_PIXELS // 2 :]
    np.testing.assert_allclose(lower_right.reshape(-1, 3).mean(axis=0), [0.45, 0.31, 0], atol=0.01)
    assert shown[: THUMBNAIL_PIXELS // 2, : THUMBNAIL_PIXELS // 2].max() == 0


def test_a_constant_image_with_nan_is_drawn_dark():
    array = np.full((8, 8, 5), 3.0)
    array[0, 0] = np.nan
    assert picture(array, np.eye(4)).shape == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS, 3)
