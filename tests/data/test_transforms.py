"""Prepared volumes lie where the patient lies, and a patch is where it says it is.

The volumes here hold a linear function of the position in mm: any wrong axis, flip, spacing or shift shows in
a value.
"""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from medfed.data.normalise.none import NoNormalisation
from medfed.data.settings import Augment, Images
from medfed.data.transforms import (
    _centres,
    augmentation,
    centre_crop,
    crop_padded,
    place_patch,
    prepare,
    random_patch,
    restore,
    sample_patch,
)
from medfed.data.volume import Volume
from medfed.errors import ImageError

torch.set_num_threads(1)

SLOPES = np.array([1.0, -0.5, 0.25])  # of the value, a mm, along the patient's right, front and head


def affine_of(
    axes: str, spacing: tuple[float, float, float], origin: tuple[float, float, float]
) -> np.ndarray:
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (letter, step) in enumerate(zip(axes, spacing, strict=True)):
        world, sign = letters[letter]
        affine[world, axis] = sign * step
    affine[:3, 3] = origin
    return affine


def places(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def ramp(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    return Volume((places(shape, affine) @ SLOPES)[None].astype(np.float32), affine)


def settings_of(**changes: object) -> Images:
    return Images(**{"normalise": NoNormalisation(), "patch": None, "augment": "none", **changes})  # type: ignore[arg-type]


AXES = ["RAS", "LPS", "LAS", "PIR", "ASL", "SRP", "ILA"]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("wanted", ["RAS", "LPS", "SAR"])
def test_orientation_moves_no_voxel(axes: str, wanted: str) -> None:
    affine = affine_of(axes, (1.5, 2.0, 3.0), (-20, 7, 100))
    prepared = prepare(ramp((5, 6, 7), affine), None, settings_of(spacing_mm="native", orientation=wanted))
    assert "".join(nib.aff2axcodes(prepared.affine_ras)) == wanted
    np.testing.assert_allclose(
        prepared.image[0], places(prepared.image.shape[1:], prepared.affine_ras) @ SLOPES, atol=1e-3
    )


@pytest.mark.parametrize("axes", AXES)
def test_spacing_is_the_studys_and_values_stay_in_place(axes: str) -> None:
    affine = affine_of(axes, (1.5, 2.0, 3.0), (-20, 7, 100))
    prepared = prepare(ramp((24, 18, 12), affine), None, settings_of(spacing_mm=(2.0, 2.5, 1.0)))
    np.testing.assert_allclose(
        np.linalg.norm(prepared.affine_ras[:3, :3], axis=0), [2.0, 2.5, 1.0], atol=1e-4
    )
    inner = (slice(3, -3),) * 3  # beyond the last voxel the border's value goes on
    expected = places(prepared.image.shape[1:], prepared.affine_ras) @ SLOPES
    np.testing.assert_allclose(prepared.image[0][inner], expected[inner], atol=2e-3)


def test_spacing_that_is_the_studys_already_blurs_nothing() -> None:
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(0, 1, (1, 6, 7, 8)).astype(np.float32), affine_of("RAS", (2, 2, 2), (0, 0, 0)))
    prepared = prepare(volume, None, settings_of(spacing_mm=(2.0, 2.0, 2.0)))
    np.testing.assert_array_equal(prepared.image, volume.array)


def test_spacing_along_swapped_axes_is_resampled() -> None:
    # Stored (S, A, R) with 3 mm along S: the study's (3, 2, 2) along R, A, S is another grid.
    affine = affine_of("SAR", (3, 2, 2), (0, 0, 0))
    prepared = prepare(ramp((6, 8, 10), affine), None, settings_of(spacing_mm=(3.0, 2.0, 2.0)))
    np.testing.assert_allclose(np.diag(prepared.affine_ras)[:3], [3, 2, 2], atol=1e-4)


def test_a_label_takes_whole_values_at_the_images_places() -> None:
    affine = affine_of("LPS", (1.5, 2.0, 3.0), (40, 30, 20))
    image = ramp((24, 18, 12), affine)
    label = Volume((image.array > 10).astype(np.float32) + (image.array > 20), affine)
    prepared = prepare(image, label, settings_of(spacing_mm=(1.0, 1.0, 1.0)))
    assert prepared.label is not None
    assert prepared.label.dtype == np.uint8
    assert set(np.unique(prepared.label)) == {0, 1, 2}
    # The nearest old voxel lies at most half a diagonal away; so far may the image's value be from the edge.
    slack = np.abs(SLOPES) @ np.array([1.5, 2.0, 3.0]) / 2 + 1e-3
    inner = (0, *(slice(3, -3),) * 3)
    assert (prepared.image[inner][prepared.label[inner] >= 1] > 10 - slack).all()
    assert (prepared.image[inner][prepared.label[inner] == 0] < 10 + slack).all()


def test_centres_are_labelled_voxels() -> None:
    affine = np.eye(4)
    label = np.zeros((1, 5, 6, 7), np.float32)
    label[0, 1, 2, 3] = label[0, 4, 5, 6] = 1
    prepared = prepare(ramp((5, 6, 7), affine), Volume(label, affine), settings_of(spacing_mm="native"))
    assert prepared.centres.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_nan_becomes_the_smallest_value() -> None:
    volume = ramp((4, 4, 4), np.eye(4))
    volume.array[0, 1, 1, 1], volume.array[0, 2, 2, 2] = np.nan, np.inf
    prepared = prepare(volume, None, settings_of(spacing_mm="native"))
    finite = volume.array[np.isfinite(volume.array)]
    assert prepared.image[0, 1, 1, 1] == finite.min()
    assert prepared.image[0, 2, 2, 2] == finite.max()


def test_an_image_without_a_number_is_refused() -> None:
    with pytest.raises(ImageError, match="no voxel of the image is a number"):
        prepare(Volume(np.full((1, 2, 2, 2), np.nan, np.float32), np.eye(4)), None, settings_of())


def test_an_absurd_affine_is_refused_before_memory_is() -> None:
    affine = np.diag([4000.0, 4000.0, 4000.0, 1.0])
    with pytest.raises(ImageError, match="8000 x 8000 x 8000 mm"):
        prepare(ramp((2, 2, 2), affine), None, settings_of(spacing_mm=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize("axes", AXES)
def test_a_prediction_comes_back_to_its_files_grid(axes: str) -> None:
    affine = affine_of(axes, (1.5, 2.0, 3.0), (-20, 7, 100))
    image = ramp((24, 18, 12), affine)
    prepared = prepare(image, None, settings_of(spacing_mm=(1.0, 1.0, 1.0)))
    back = restore(prepared.image, prepared, nearest=False)
    assert back.shape == image.array.shape
    inner = (0, *(slice(2, -2),) * 3)
    np.testing.assert_allclose(back[inner], image.array[inner], atol=5e-3)


def test_a_label_there_and_back_is_itself() -> None:
    affine = affine_of("LPS", (2.0, 2.0, 3.0), (9, 8, 7))
    label = np.zeros((1, 20, 20, 14), np.float32)
    label[0, 4:15, 5:12, 3:9] = 1
    prepared = prepare(
        ramp((20, 20, 14), affine), Volume(label, affine), settings_of(spacing_mm=(0.5, 0.5, 0.5))
    )
    assert prepared.label is not None
    back = restore(prepared.label, prepared, nearest=True)
    overlap = 2 * (back * label).sum() / (back.sum() + label.sum())
    assert overlap > 0.98


# --- patches ------------------------------------------------------------------------------------------------


def test_cut_is_a_slice() -> None:
    array = np.arange(4 * 5 * 6).reshape(1, 4, 5, 6)
    np.testing.assert_array_equal(crop_padded(array, (1, 2, 3), (2, 2, 2), 0), array[:, 1:3, 2:4, 3:5])


def test_thinned_centres_keep_some_of_a_rare_class() -> None:
    label = np.ones((1, 100, 50, 10), np.uint8)  # 50,000 voxels, of which 20,000 are kept: two of five
    label[0, 0, :12, :10] = 2  # 120 of them, of which two of five would be 48
    centres = _centres(label)
    classes = label[0][tuple(centres.T)]
    assert (classes == 2).sum() == 120
    assert (classes == 1).sum() == int((50_000 - 120) * 0.4)
    assert len(np.unique(centres, axis=0)) == len(centres)


def test_patches_are_about_each_structure_as_often() -> None:
    label = np.zeros((1, 30, 30, 30), np.uint8)
    label[0, :10], label[0, 20, 20, 20] = 1, 2  # 9,000 voxels and one
    centres = _centres(label)
    image = label.astype(np.float32)
    counts = {"voxels": 0, "classes": 0}
    for balance in counts:
        settings = settings_of(patch=(4, 4, 4), foreground=1, balance=balance)
        for seed in range(300):
            patch = sample_patch(image, label, centres, settings, None, seed)
            counts[balance] += 2 in patch["label"]
    # Half of 300, and 3 standard deviations, sqrt(300 / 4) each; by voxels one of 9,001.
    assert abs(counts["classes"] - 150) < 26
    assert counts["voxels"] <= 2


def test_cut_centres_what_is_too_small() -> None:
    cropped = crop_padded(np.ones((1, 2, 3, 8), np.float32), (0, 0, 2), (4, 4, 4), -7)
    assert cropped.shape == (1, 4, 4, 4)
    assert cropped[0, 1:3, 0:3, :].min() == 1  # 2 of 4 with 1 before, 3 of 4 with 0 before
    assert (cropped == 1).sum() == 2 * 3 * 4
    assert cropped[0, 0, 0, 0] == -7


def test_centre_crop_by_hand() -> None:
    array = np.arange(5)[None, :, None, None] * np.ones((1, 5, 1, 1))
    np.testing.assert_array_equal(centre_crop(array, (3, 1, 1))[0, :, 0, 0], [1, 2, 3])


@pytest.mark.parametrize("seed", range(20))
def test_a_foreground_patch_holds_its_centre(seed: int) -> None:
    centres = np.array([[0, 0, 0], [19, 14, 9], [10, 7, 5]], np.int32)
    start = np.array(place_patch((20, 15, 10), centres, (8, 8, 8), 1.0, np.random.default_rng(seed)))
    assert (start >= 0).all()
    assert (start + 8 <= (20, 15, 10)).all()
    assert any(((start <= c) & (c < start + 8)).all() for c in centres)


def test_patches_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    result = {place_patch((6, 4, 5), np.zeros((0, 3), np.int32), (4, 4, 4), 0.5, rng) for _ in range(300)}
    assert result == set(itertools.product(range(3), range(1), range(2)))


def test_the_share_of_foreground_patches_is_the_settings() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[50, 50, 50]], np.int32)
    inside = 0
    for _ in range(2000):
        start = np.array(place_patch((100, 100, 100), centres, (4, 4, 4), 0.6, rng))
        inside += bool(((start <= 50) & (start + 4 > 50)).all())
    # A random patch holds the centre with a chance of 4^3 / 97^3: nothing. 5 deviations are 0.055.
    assert inside / 2000 == pytest.approx(0.6, abs=0.055)


# --- augmentation -------------------------------------------------------------------------------------------

EVERYTHING = Augment(flip=0.5, rotate=1.0, intensity=1.0, noise=1.0, blur=1.0)


def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    image = rng.normal(0, 1, (1, 16, 14, 12)).astype(np.float32)
    label = (rng.random((1, 16, 14, 12)) < 0.2).astype(np.uint8)
    return image, label, np.argwhere(label[0]).astype(np.int32)


def test_a_draw_follows_from_its_seed_alone() -> None:
    settings = Images(patch=(8, 8, 8), augment=EVERYTHING)
    first, second = augmentation(EVERYTHING, True, "RAS"), augmentation(EVERYTHING, True, "RAS")
    expected = sample_patch(*example(), settings, first, 5)
    torch.manual_seed(99)
    sample_patch(*example(), settings, second, 6)
    again = sample_patch(*example(), settings, second, 5)
    for key, value in expected.items():
        assert torch.equal(value, again[key]), key
    assert not torch.equal(expected["image"], sample_patch(*example(), settings, first, 7)["image"])


def test_image_and_label_move_together() -> None:
    # The label is the image: whatever flips and rotates must keep it so.
    augment = Augment(flip=1.0, rotate=1.0, intensity=0, noise=0)
    label = np.zeros((1, 16, 16, 16), np.uint8)
    label[0, 3:9, 4:12, 5:8] = 1
    settings = Images(patch=(16, 16, 16), augment=augment)
    changes = augmentation(augment, True, "RAS")
    patch = sample_patch(
        label.astype(np.float32), label, np.argwhere(label[0]).astype(np.int32), settings, changes, 4
    )
    alike = (patch["image"] > 0.5) == (patch["label"] > 0)
    assert alike.float().mean() > 0.98
    assert not torch.equal(patch["label"][0], torch.from_numpy(label[0].astype(np.int64)))


@pytest.mark.parametrize(
    ("axis", "orientation", "place"), [("x", "RAS", 0), ("y", "LPS", 1), ("z", "SAR", 0), ("x", "SAR", 2)]
)
def test_flips_go_along_the_patients_axes(axis: str, orientation: str, place: int) -> None:
    augment = Augment(flip=1.0, flip_axes=(axis,), rotate=0, intensity=0, noise=0)  # type: ignore[arg-type]
    image, label, centres = example()
    settings = settings_of(augment=augment)
    patch = sample_patch(image, label, centres, settings, augmentation(augment, True, orientation), 1)
    np.testing.assert_array_equal(patch["image"].numpy(), np.flip(image, 1 + place))
    np.testing.assert_array_equal(patch["label"].numpy(), np.flip(label, 1 + place))


def test_no_augmentation_leaves_an_image_as_it_is() -> None:
    image, label, centres = example()
    patch = sample_patch(image, label, centres, settings_of(), augmentation("none", True, "RAS"), 1)
    np.testing.assert_array_equal(patch["image"].numpy(), image)
    assert patch["label"].dtype == torch.int64
    assert type(patch["image"]) is torch.Tensor  # plain: no metadata to pickle


def test_augmentation_leaves_the_prepared_volume_alone() -> None:
    image, label, centres = example()
    before = image.copy()
    sample_patch(
        image,
        label,
        centres,
        Images(patch=None, augment=EVERYTHING),
        augmentation(EVERYTHING, True, "RAS"),
        1,
    )
    np.testing.assert_array_equal(image, before)


def test_a_patch_of_an_image_alone_is_anywhere_in_it_as_its_seed_decides() -> None:
    image = np.arange(2 * 6 * 5 * 4, dtype=np.float32).reshape(2, 6, 5, 4)
    settings = settings_of(patch=(4, 4, 4))
    drawn = [random_patch(image, settings, seed) for seed in range(60)]
    corners = {tuple(int(one) for one in np.argwhere(image[0] == patch[0, 0, 0, 0])[0]) for patch in drawn}
    # 3 starts along x, 2 along y, one along z.
    assert corners == {(x, y, 0) for x in range(3) for y in range(2)}
    for patch, (x, y, z) in ((drawn[0], np.argwhere(image[0] == drawn[0][0, 0, 0, 0])[0]),):
        assert np.array_equal(patch, image[:, x : x + 4, y : y + 4, z : z + 4])
    assert np.array_equal(drawn[7], random_patch(image, settings, 7))
    assert random_patch(image, settings_of(patch=None), 0) is image


def test_in_2d_it_is_of_one_slice() -> None:
    image = np.arange(6 * 5 * 4, dtype=np.float32).reshape(1, 6, 5, 4)
    for patch, shape in (((4, 4), (1, 4, 4, 1)), (None, (1, 6, 5, 1))):
        settings = settings_of(spatial_dims=2, slices="axial", spacing_mm="native", patch=patch)
        drawn = [random_patch(image, settings, seed) for seed in range(40)]
        assert {one.shape for one in drawn} == {shape}
        assert {float(one[0, 0, 0, 0]) % 4 for one in drawn} == {0, 1, 2, 3}
