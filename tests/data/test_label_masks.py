"""One label from several files: masks named after their structures, and objects that name their own."""

from __future__ import annotations

from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, segmentation, write, write_series

from medfed.data.class_names import ClassNames
from medfed.data.label_masks import read_masks_on_grid
from medfed.data.read import read
from medfed.data.read_options import LabelOptions
from medfed.data.refusals import LabelClassesError
from medfed.data.volume import Volume
from medfed.errors import LabelError

from .hospital_folder import write_nifti

NAMING = ClassNames(("background", "liver", "tumour"))
SHAPE = (4, 3, 2)
LIKE = Volume(np.zeros((1, *SHAPE), np.float32), np.eye(4))


def options(**settings: object) -> LabelOptions:
    return LabelOptions(classes=3, naming=NAMING, **settings)


def mask(folder: Path, name: str, *voxels: tuple[int, int, int], value: int = 1) -> tuple[str, Path]:
    array = np.zeros(SHAPE, np.uint8)
    for voxel in voxels:
        array[voxel] = value
    return name, write_nifti(folder / f"{name}{len(list(folder.glob('*')))}.nii.gz", array)


def test_each_mask_is_the_class_that_its_structure_is_called(tmp_path: Path) -> None:
    masks = [
        mask(tmp_path, "Tumour", (1, 1, 1), value=255),
        mask(tmp_path, "LIVER", (0, 0, 0)),
        mask(tmp_path, "liver", (2, 0, 1)),
        mask(tmp_path, "spleen", (3, 2, 1)),
    ]
    expected = np.zeros(SHAPE)
    expected[1, 1, 1] = 2
    expected[0, 0, 0] = expected[2, 0, 1] = 1
    np.testing.assert_array_equal(read_masks_on_grid(masks, LIKE, options()).array[0], expected)


def test_voxels_of_two_structures_are_decided_by_overlap(tmp_path: Path) -> None:
    masks = [mask(tmp_path, "tumour", (1, 1, 1)), mask(tmp_path, "liver", (1, 1, 1))]
    assert read_masks_on_grid(masks, LIKE, options(overlap="later")).array[0][1, 1, 1] == 2
    with pytest.raises(LabelError, match=r"^1 voxels belong to several segments"):
        read_masks_on_grid(masks, LIKE, options(overlap="refuse"))


def test_a_mask_of_several_values_or_without_classes_is_refused(tmp_path: Path) -> None:
    two = np.zeros(SHAPE, np.uint8)
    two[0, 0, 0], two[1, 1, 1] = 1, 2
    path = write_nifti(tmp_path / "two.nii.gz", two)
    with pytest.raises(LabelClassesError, match=r"^a mask of one structure holds 2 values beside 0, one is"):
        read_masks_on_grid([("liver", path)], LIKE, options())
    with pytest.raises(LabelError, match=r"^a label in several files needs the names of the task's classes"):
        read_masks_on_grid([("liver", path)], LIKE, LabelOptions(classes=3))
    with pytest.raises(LabelError, match=r"^one of several label files is no segmentation or structure set"):
        read_masks_on_grid([("", path)], LIKE, options())


def test_objects_that_name_their_own_structures_are_used_together(tmp_path: Path) -> None:
    series = Series(shape=(2, 3, 4))
    write_series(tmp_path / "ct", series)
    (image,) = read(tmp_path / "ct")
    masks = {name: np.zeros((3, 4), bool) for name in ("liver", "tumour", "spleen")}
    for number, one in enumerate(masks.values()):
        one[number, number] = True

    def seg(name: str, *frames: tuple[str, int]) -> tuple[str, Path]:
        numbered = [(n, k, masks[title]) for n, (title, k) in enumerate(frames, 1)]
        titles = [title for title, _ in frames]
        return "", write(segmentation(series, numbered, titles=titles), tmp_path / f"{name}.dcm")

    first, second = seg("a", ("liver", 0)), seg("b", ("tumour", 1), ("liver", 0))
    unknown, other = seg("c", ("spleen", 0)), seg("d", ("liver", 1))
    expected = np.zeros(series.shape, np.uint8)  # (slices, rows, columns)
    expected[0, 0, 0], expected[1, 1, 1] = 1, 2
    label = read_masks_on_grid([first, second, unknown], image, options())
    np.testing.assert_array_equal(label.array[0], hs.as_xyz(expected))
    with pytest.raises(LabelClassesError, match=r"^two segmentations .* draw 'liver', and differently"):
        read_masks_on_grid([first, other], image, options())
