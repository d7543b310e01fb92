"""The contract of a reader names what naive ones break."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from contract import broken

from medfed.data.volume import Info, Volume
from medfed.errors import ImageError
from medfed.testing import ReaderExample, check_reader

VOXELS = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def write(folder: Path) -> Path:
    np.savez(folder / "volume.npz", array=VOXELS, affine_ras=AFFINE)
    return folder / "volume.npz"


def read_trustfully(path: Path) -> list[Volume]:
    """A damaged file raises whatever numpy raises."""
    with np.load(path) as file:
        return [Volume(file["array"], file["affine_ras"])]


def read_archive(path: Path) -> list[Volume]:
    try:
        return read_trustfully(path)
    except (zipfile.BadZipFile, ValueError, OSError):
        raise ImageError("the archive is damaged") from None


def changed(**changes) -> ReaderExample:
    """A reader that returns the volume with one thing changed."""

    def read(path: Path) -> list[Volume]:
        (volume,) = read_archive(path)
        return [replace(volume, **{name: change(volume) for name, change in changes.items()})]

    return replace(EXAMPLE, read=read)


EXAMPLE = ReaderExample(Volume(VOXELS, AFFINE), write, read_archive, private="Meier")
TYPES = "it_returns_one_typed_volume_without_a_warning"
PLACES = "every_voxel_is_at_its_place"
AGAIN = "reading_again_gives_the_same_and_shares_nothing"
LABEL = "a_label_on_its_grid_keeps_its_classes"
DAMAGE = "a_truncated_file_is_refused_without_naming_anyone"

WRONG = {
    "float64": (changed(array=lambda v: v.array.astype(float)), {TYPES}),
    "names the patient": (changed(info=lambda v: Info(modality="Meier")), {TYPES}),
    "flipped": (changed(array=lambda v: v.array[:, ::-1]), {PLACES, AGAIN}),
    "transposed without its affine": (
        changed(array=lambda v: v.array.swapaxes(1, 3)),
        {TYPES, PLACES, AGAIN},
    ),
    "without channels": (changed(array=lambda v: v.array[0]), {TYPES, PLACES, AGAIN, LABEL}),
    "cached": (replace(EXAMPLE, read=cache(read_archive)), {AGAIN}),
    "trusting": (replace(EXAMPLE, read=read_trustfully), {DAMAGE}),
}


def test_a_right_one_passes() -> None:
    check_reader(EXAMPLE)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_is_named(name: str) -> None:
    example, checks = WRONG[name]
    assert broken(check_reader, example) == checks


def test_each_check_is_broken_by_one_of_them() -> None:
    assert set().union(*(checks for _, checks in WRONG.values())) == set(check_reader.checks)
