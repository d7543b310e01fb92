"""A hospital in which something is wrong with each case, one thing a case."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SIZE = 24
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
# In every name that a hospital gives: none of it may come out.
MARK = "MARKzweig"


def body(seed: int) -> np.ndarray:
    """A ball of 60 HU with noise, in air of -1000 HU, int16."""
    random = np.random.default_rng(seed)
    away = np.linalg.norm(np.indices((SIZE,) * 3) - (SIZE - 1) / 2, axis=0)
    return np.where(
        away < 10, 60 + random.normal(0, 5, away.shape), -1000 + random.normal(0, 3, away.shape)
    ).astype(np.int16)


def ball(radius: float = 4) -> np.ndarray:
    """A labelled ball in the middle: its first and last slices are small."""
    away = np.linalg.norm(np.indices((SIZE,) * 3) - (SIZE - 1) / 2, axis=0)
    return (away < radius).astype(np.uint8)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, spoil: bool = False) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    if spoil:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


class Hospital:
    """Cases with a row each; `row` is the number a spreadsheet shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []

    def add(
        self,
        image: np.ndarray | None = None,
        label: np.ndarray | None = None,
        *,
        affine: np.ndarray = AFFINE,
        label_affine: np.ndarray | None = None,
        spoil: str = "",
        **cells: str,
    ) -> int:
        number = len(self.rows)
        name = f"{MARK}-{number}"
        image = body(number) if image is None else image
        label = ball() if label is None else label
        save(self.folder / "images" / f"{name}.nii.gz", image, affine, spoil == "image")
        save(
            self.folder / "labels" / f"{name}.nii.gz",
            label,
            affine if label_affine is None else label_affine,
            spoil == "label",
        )
        row = {
            "case": name,
            "patient": f"{MARK} patient {number}",
            "image": f"images/{name}.nii.gz",
            "label": f"labels/{name}.nii.gz",
            "split": ("train", "train", "val", "test")[number % 4],
        }
        self.rows.append(row | cells)
        return number + 2

    def write(self) -> Path:
        with (self.folder / "cases.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        return self.folder


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / f"{MARK} folder")
