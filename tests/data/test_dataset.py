"""Items of a dataset: refusals name the case by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medfed.data.datamodule import SiteDataModule
from medfed.data.settings import Images
from medfed.errors import DataError, ImageError, LabelError

from .hospital_folder import MARK, NATIVE, folder_of, index, refused, row, token, write_nifti


def test_a_target_beyond_the_tasks_classes(tmp_path: Path) -> None:
    indexed = index(folder_of(tmp_path, [row("a"), row("b", target="2")]))
    refused(lambda: SiteDataModule(indexed, NATIVE, "classify", classes=2), DataError, token("b"), "has 2")


def read_all(folder: Path, classes: int = 2) -> None:
    dataset = SiteDataModule(index(folder), NATIVE, "segment", classes=classes).dataset("train")
    for i in range(len(dataset)):  # type: ignore[arg-type]
        dataset[i]


def test_an_unreadable_nifti(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    content = (folder / f"{MARK}_b.nii.gz").read_bytes()
    (folder / f"{MARK}_b.nii.gz").write_bytes(content[: len(content) // 2])
    refused(lambda: read_all(folder), ImageError, f"case {token('b')}")


def test_a_label_of_another_shape(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    write_nifti(folder / f"{MARK}_b_label.nii.gz", np.zeros((6, 5, 3), np.uint8))
    refused(lambda: read_all(folder), LabelError, f"case {token('b')}")


def test_a_label_with_a_value_that_is_no_class(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    write_nifti(folder / f"{MARK}_b_label.nii.gz", np.full((6, 5, 4), 7, np.uint8))
    refused(lambda: read_all(folder), LabelError, f"case {token('b')}", "7")


def test_channels_on_different_grids(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", image=f"{MARK}_a.nii.gz|{MARK}_b.nii.gz")])
    moved = np.eye(4)
    moved[0, 3] = 1.5
    write_nifti(folder / f"{MARK}_b.nii.gz", np.zeros((6, 5, 4), np.float32), moved)
    settings = Images(spacing_mm="native", patch=None, channels=2)
    refused(
        lambda: SiteDataModule(index(folder), settings, "segment", classes=2).dataset("train")[0],
        ImageError,
        token("a"),
        "channel 2",
        "1.50 mm",
    )


def test_more_channels_than_the_study_has(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", image=f"{MARK}_a.nii.gz|{MARK}_b.nii.gz")])
    refused(lambda: read_all(folder), ImageError, token("a"), "2 channels", "data.channels is 1")


def test_changing_a_training_image_does_not_change_the_one_that_is_kept(tmp_path: Path) -> None:
    indexed = index(folder_of(tmp_path, [row("a"), row("b")]))
    for cache in ("memory", "none"):
        settings = Images(spacing_mm="native", patch=None, augment="none", cache=cache)
        data = SiteDataModule(indexed, settings, "classify", classes=2)
        dataset = data.dataset("train", training=True)
        before = dataset[0]["image"].clone()
        dataset[0]["image"].fill_(7)
        assert (dataset[0]["image"] == before).all()


def test_images_alone_need_no_label_and_carry_none(tmp_path: Path) -> None:
    rows = [row("a"), f"{MARK}-b,{MARK}b,{MARK}_b.nii.gz,,,train", f"{MARK}-c,{MARK}c,{MARK}_c.nii.gz,,,val"]
    folder = folder_of(tmp_path, rows)
    (folder / f"{MARK}_a_label.nii.gz").write_bytes(b"broken")
    settings = Images(spacing_mm="native", patch=(4, 4, 4), samples=3, augment="none")
    data = SiteDataModule(index(folder), settings, "image")
    training = data.dataset("train", training=True)
    items = [training[number] for number in range(len(training))]  # type: ignore[arg-type]
    assert [item["case"] for item in items] == [token(name) for name in "aaabbb"]
    assert {tuple(item["image"].shape) for item in items} == {(1, 4, 4, 4)}
    assert all(item.keys() == {"case", "image"} for item in items)
    (whole,) = data.val_dataloader()
    assert whole.keys() == {"case", "image"}
    assert whole["image"].shape == (1, 1, 6, 5, 4)
    # What a batch does with its image, the cache does not see.
    before = training[0]["image"].clone()
    training[0]["image"].zero_()
    assert (training[0]["image"] == before).all()
