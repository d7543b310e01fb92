"""2D studies: planes and slices are prepared, drawn, predicted and measured where they are.

Images are made with a value for each pixel that says where it is, so a wrong axis or slice shows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from medfed.data.normalise.none import NoNormalisation
from medfed.data.planes import PIXELS, scaled, scaled_affine
from medfed.data.settings import Augment, Images, PlanSettings
from medfed.data.transforms import augmentation, prepare, restore, sample_patch, whole_input
from medfed.data.volume import Info, Volume
from medfed.errors import DataError, ImageError

torch.set_num_threads(1)


def settings_of(**changes: object) -> Images:
    plain = {"normalise": NoNormalisation(), "patch": None, "augment": "none", "spacing_mm": "native"}
    return Images(**{"spatial_dims": 2, **plain, **changes})  # type: ignore[arg-type]


def plane(x: int, y: int, *, spacing_mm: float = 1.0, flags: tuple[str, ...] = (PIXELS,)) -> Volume:
    """Return a plane whose pixel (x, y) is 100 x + y, stored as radiographs are: left and downwards."""
    values = 100.0 * np.arange(x)[:, None] + np.arange(y)
    affine = np.diag([-spacing_mm, -spacing_mm, 1.0, 1.0])
    return Volume(values[None, :, :, None].astype(np.float32), affine, Info(flags=flags))


def volume(shape: tuple[int, int, int] = (6, 8, 10)) -> Volume:
    """Return an LPS volume whose voxel (x, y, z) is 10,000 x + 100 y + z; voxels are 1 x 2 x 5 mm."""
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    affine = np.diag([-1.0, -2.0, 5.0, 1.0])
    return Volume((10_000 * x + 100 * y + z)[None].astype(np.float32), affine)


def test_a_plane_keeps_its_columns_and_rows() -> None:
    prepared = prepare(plane(5, 3), None, settings_of())
    assert prepared.image.shape == (1, 5, 3, 1)
    assert prepared.image[0, 4, 2, 0] == 402.0
    assert prepared.in_pixels


@pytest.mark.parametrize(
    ("slices", "letters", "spacing"),
    [("axial", "RAS", (1, 2, 5)), ("coronal", "RSA", (1, 5, 2)), ("sagittal", "ASR", (2, 5, 1))],
)
def test_slices_of_a_volume_lie_along_the_last_axis(
    slices: str, letters: str, spacing: tuple[float, ...]
) -> None:
    settings = settings_of(slices=slices)
    assert settings.axes == letters
    prepared = prepare(volume(), None, settings)
    np.testing.assert_allclose(np.linalg.norm(prepared.affine_ras[:3, :3], axis=0), spacing)
    # The value at an index is that of the voxel at the same place: LPS voxel x is RAS voxel 5 - x.
    index = dict(zip(letters, (1, 2, 3), strict=True))
    expected = 10_000 * (5 - index["R"]) + 100 * (7 - index["A"]) + index["S"]
    assert prepared.image[0, 1, 2, 3] == expected


def test_slices_are_scaled_in_their_plane_and_keep_their_distance() -> None:
    prepared = prepare(volume((8, 8, 3)), None, settings_of(slices="axial", spacing_mm=(2.0, 4.0)))
    assert prepared.image.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(np.linalg.norm(prepared.affine_ras[:3, :3], axis=0), (2, 4, 5))
    # A ramp stays one: the values of a slice are those of the next, less one.
    np.testing.assert_allclose(prepared.image[..., 1] - prepared.image[..., 0], 1, atol=0.01)


def test_a_plane_of_several_slices_is_refused() -> None:
    with pytest.raises(ImageError, match=r"has 10 slices.*set data\.slices to axial"):
        prepare(volume(), None, settings_of())


def test_a_picture_without_a_size_in_mm_is_not_resampled_to_mm() -> None:
    with pytest.raises(ImageError, match=r"no size in mm.*set it to fit or native"):
        prepare(plane(8, 8), None, settings_of(spacing_mm=(0.5, 0.5)))
    with pytest.raises(ImageError, match=r"no size in mm.*set data\.spatial_dims to 2"):
        prepare(plane(8, 8), None, settings_of(spatial_dims=3, spacing_mm=(1, 1, 1)))
    prepared = prepare(plane(8, 8, spacing_mm=0.25, flags=()), None, settings_of(spacing_mm=(0.5, 0.5)))
    assert prepared.image.shape == (1, 4, 4, 1)
    assert not prepared.in_pixels


def test_fit_keeps_proportions_and_the_field_of_view() -> None:
    settings = settings_of(spacing_mm="fit", patch=(32, 32))
    prepared = prepare(plane(64, 128), None, settings)
    assert prepared.image.shape == (1, 16, 32, 1)
    np.testing.assert_allclose(np.linalg.norm(prepared.affine_ras[:3, :2], axis=0), (4, 4))
    # The first new pixel covers pixels 0 to 3, whose centre is 1.5; the affine points left and down.
    np.testing.assert_allclose(prepared.affine_ras[:3, 3], (-1.5, -1.5, 0))
    assert whole_input(prepared.image, settings).shape == (1, 32, 32)


def test_scaling_is_that_of_pillow() -> None:
    values = np.random.default_rng(0).random((60, 45)).astype(np.float32)
    ours = scaled(values[None, :, :, None], (13, 17, 1))[0, :, :, 0]
    theirs = np.asarray(Image.fromarray(values).resize((17, 13), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_prediction_returns_to_the_pixels_of_the_file() -> None:
    settings = settings_of(spacing_mm="fit", patch=(32, 32))
    image = plane(64, 128)
    label = np.zeros((1, 64, 128, 1), np.uint8)
    label[0, 8:24, 40:80] = 1
    prepared = prepare(image, Volume(label, image.affine_ras), settings)
    assert prepared.label is not None
    # A new pixel of 4 x 4: 8 to 24 is 2 to 6, 40 to 80 is 10 to 20.
    expected = np.zeros((16, 32), np.uint8)
    expected[2:6, 10:20] = 1
    np.testing.assert_array_equal(prepared.label[0, :, :, 0], expected)
    np.testing.assert_array_equal(restore(prepared.label, prepared, nearest=True), label)


def test_scaled_affine_keeps_the_outer_edges() -> None:
    affine = np.diag([-0.5, -0.25, 1.0, 1.0])
    moved = scaled_affine(affine, (10, 30, 1), (4, 7, 1))
    for corner, other in (((-0.5, -0.5), (-0.5, -0.5)), ((9.5, 29.5), (3.5, 6.5))):
        np.testing.assert_allclose(affine @ [*corner, 0, 1], moved @ [*other, 0, 1])


def test_a_training_item_is_part_of_a_slice_that_holds_a_label() -> None:
    settings = settings_of(slices="axial", patch=(4, 4), foreground=1.0)
    label = np.zeros((1, 6, 8, 10), np.uint8)
    label[0, 2, 3, 7] = 1
    prepared = prepare(volume(), Volume(label, volume().affine_ras), settings)
    for seed in range(20):
        item = sample_patch(prepared.image, prepared.label, prepared.centres, settings, None, seed)
        assert item["image"].shape == (1, 4, 4)
        assert item["label"].shape == (1, 4, 4)
        assert int(item["label"].sum()) == 1
        assert set((item["image"] % 100).flatten().tolist()) == {7.0}  # all of slice 7


def test_without_foreground_every_slice_is_drawn() -> None:
    settings = settings_of(slices="axial", patch=(4, 4), foreground=0.0)
    prepared = prepare(volume(), Volume(np.zeros((1, 6, 8, 10), np.uint8), volume().affine_ras), settings)
    drawn = [
        sample_patch(prepared.image, prepared.label, prepared.centres, settings, None, seed)["image"][0, 0, 0]
        % 100
        for seed in range(200)
    ]
    assert {int(one) for one in drawn} == set(range(10))


def test_whole_slices_are_drawn_without_a_patch() -> None:
    settings = settings_of(slices="axial")
    label = np.zeros((1, 6, 8, 10), np.uint8)
    prepared = prepare(volume(), Volume(label, volume().affine_ras), settings)
    item = sample_patch(prepared.image, prepared.label, prepared.centres, settings, None, 1)
    assert item["image"].shape == (1, 6, 8)


def test_a_plane_is_turned_and_flipped_in_its_plane() -> None:
    turned = augmentation(
        Augment(flip=1.0, flip_axes=("y", "z"), rotate=0, intensity=0, noise=0), False, "RA"
    )
    assert turned is not None
    image = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(torch.as_tensor(turned({"image": image})["image"]), image.flip(2))
    every = augmentation(
        Augment(rotate=1, rotate_deg=180, scale=0.1, blur=1, noise=1, intensity=1), True, "RA"
    )
    assert every is not None
    moved = every({"image": torch.rand(2, 9, 7), "label": torch.ones(1, 9, 7)})
    assert moved["image"].shape == (2, 9, 7)


def test_3d_numbers_in_a_2d_study_and_the_reverse_are_refused() -> None:
    for changes, words in (
        ({"patch": (96, 96, 96)}, r"patch has 3 numbers .* spatial_dims is 2; give two"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, r"spacing_mm has 3 numbers"),
        ({"plan": PlanSettings()}, r"plan computes the patches of volumes"),
        ({"spacing_mm": "fit"}, r"spacing_mm: fit scales images of one plane into the patch"),
        ({"spacing_mm": "fit", "patch": (8, 8), "slices": "axial"}, r"leave slices out"),
    ):
        with pytest.raises(DataError, match=words):
            settings_of(**changes)
    for other, words in (
        ({"patch": (96, 96)}, r"patch has 2 numbers and spatial_dims is 3"),
        ({"spacing_mm": (1.0, 1.0)}, r"spacing_mm has 2 numbers and spatial_dims is 3"),
        ({"spacing_mm": "fit"}, r"spacing_mm: fit is for planes"),
        ({"slices": "axial"}, r"slices is for planes"),
    ):
        with pytest.raises(DataError, match=words):
            Images(**other)  # type: ignore[arg-type]


def test_prepared_planes_are_told_apart_in_the_cache() -> None:
    from medfed.data.cache import preparation_recipe

    first = settings_of(spacing_mm="fit", patch=(32, 32))
    others = [settings_of(spacing_mm="fit", patch=(64, 64)), settings_of(), settings_of(slices="axial")]
    recipes = [preparation_recipe(one, "segment", 2) for one in (first, *others)]
    assert all(one != other for one, other in pairwise(recipes))
    assert len(set(recipes)) == 4


def test_in_pixels_survives_the_cache(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from medfed.data.cache import load, save

    prepared = prepare(plane(5, 3), None, settings_of())
    save(tmp_path / "entry", prepared)
    again = load(tmp_path / "entry")
    assert again is not None
    assert again.in_pixels
    assert replace(prepared, in_pixels=False).in_pixels is False


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 997, 30_000])
def test_percentiles_of_whole_numbers_are_numpys_to_the_last_bit(dtype: type, size: int) -> None:
    from medfed.data.normalise.percentile import Percentile

    rng = np.random.default_rng(size)
    for low, high in ((0.5, 99.5), (0, 100), (33.3, 66.7), (1, 50)):
        values = (rng.random(size) ** 3 * np.iinfo(dtype).max).astype(dtype).astype(np.float32)
        result = Percentile(low=low, high=high).channel(values.reshape(1, -1, 1))
        bottom, top = np.percentile(values, [low, high])
        expected = np.zeros_like(values)
        if top > bottom:
            expected = ((values.clip(bottom, top) - bottom) / (top - bottom) * 2 - 1).astype(np.float32)
        np.testing.assert_array_equal(result.reshape(-1), expected)
        assert result.dtype == np.float32


def test_numbers_that_are_not_whole_are_not_rounded() -> None:
    from medfed.data.normalise.percentile import Percentile

    values = np.concatenate([np.arange(2000), [0.5]]).astype(np.float32).reshape(1, -1, 1)
    result = Percentile(low=0, high=100).channel(values)
    assert result[0, -1, 0] == pytest.approx(0.5 / 1999 * 2 - 1, abs=1e-7)
