"""A small hospital of each layout in docs/how-to/folder-layouts.md, with images that a study can train on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..hospital_folder import SAMPLES, write_nifti

CASES = 6
SHAPE = (16, 16, 16)


def image(path: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    array = rng.normal(0, 1, SHAPE).astype(np.float32)
    array[4:9, 4:9, 4:9] += 5
    write_nifti(path, array)


def label(path: Path, number: int, values: int = 1) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[4:9, 4:9, 4:9] = 1
    if values == 2:
        array[11:13, 11:13, 11:13] = 2
    write_nifti(path, array)


def described(folder: Path, **more: object) -> None:
    plain = {"labels": {"0": "background", "1": "tumour"}, "modality": {"0": "MRI"}}
    (folder / "dataset.json").write_text(json.dumps(plain | more))


def cases_csv(folder: Path) -> None:
    rows = ["case,patient,image,label"]
    for n in range(CASES):
        image(folder / f"i{n}.nii.gz", n)
        label(folder / f"l{n}.nii.gz", n)
        rows.append(f"c{n},p{n},i{n}.nii.gz,l{n}.nii.gz")
    (folder / "cases.csv").write_text("\n".join(rows))


def decathlon(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"imagesTr/c{n}.nii.gz", n)
        label(folder / f"labelsTr/c{n}.nii.gz", n)
    described(folder)


def nnunet(folder: Path) -> None:
    for n in range(CASES):
        for channel in range(2):
            image(folder / f"imagesTr/c{n}_{channel:04d}.nii.gz", 10 * n + channel)
        label(folder / f"labelsTr/c{n}.nii.gz", n)
    named = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "tumour": 1}}
    (folder / "dataset.json").write_text(json.dumps(named))


def amos(folder: Path) -> None:
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for n in range(CASES):
        end, key = ("Va", "validation") if n == 0 else ("Tr", "training")
        image(folder / f"images{end}/c{n}.nii.gz", n)
        label(folder / f"labels{end}/c{n}.nii.gz", n)
        lists[key].append({"image": f"./images{end}/c{n}.nii.gz", "label": f"./labels{end}/c{n}.nii.gz"})
    described(folder, **lists)


def bids(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"sub-{n}/anat/sub-{n}_FLAIR.nii.gz", n)
        label(folder / f"derivatives/labels/sub-{n}/anat/sub-{n}_lesion-manual_mask.nii.gz", n)


def paired(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"images/c{n}.nii.gz", n)
        label(folder / f"ground_truth/c{n}_seg.nii.gz", n)


def channel_folders(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"t1/c{n}.nii.gz", n)
        image(folder / f"flair/c{n}.nii.gz", n + 100)
        label(folder / f"seg/c{n}.nii.gz", n)


def structures(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"images/c{n}.nii.gz", n)
        label(folder / f"labels/liver/c{n}.nii.gz", n)


def kits(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"case_{n:05d}/imaging.nii.gz", n)
        label(folder / f"case_{n:05d}/segmentation.nii.gz", n, 2)


def brats(folder: Path) -> None:
    for n in range(CASES):
        for channel, end in enumerate(("t1c", "t1n", "t2f", "t2w")):
            image(folder / f"BraTS-{n}/BraTS-{n}-{end}.nii.gz", 10 * n + channel)
        label(folder / f"BraTS-{n}/BraTS-{n}-seg.nii.gz", n)


def totalsegmentator(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"s{n}/ct.nii.gz", n)
        label(folder / f"s{n}/segmentations/liver.nii.gz", n)


def classes(folder: Path) -> None:
    for n in range(2 * CASES):
        image(folder / ("healthy" if n % 2 else "tumour") / f"c{n}.nii.gz", n)


def dicom(folder: Path) -> None:
    for case in sorted((SAMPLES / "north" / "labels").iterdir())[:CASES]:
        shutil.copytree(SAMPLES / "north" / "images" / case.stem, folder / case.stem / "ct")
        shutil.copy(case, folder / case.stem / "seg.dcm")


def pattern(folder: Path) -> None:
    for n in range(CASES):
        image(folder / f"P{n}/scan{n}_t1.nii.gz", n)
        label(folder / f"P{n}/drawn_by_hand.nii.gz", n)


PATTERN = "{kind: pattern, image: '{patient}/*_t1.nii.gz', label: '{patient}/drawn_by_hand.nii.gz'}"

# The layout's kind, who writes the hospital, and what a person must say.
EACH: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cases.csv": ("cases_csv", cases_csv, ""),
    "Decathlon": ("decathlon", decathlon, ""),
    "nnU-Net raw": ("nnunet_raw", nnunet, ""),
    "AMOS": ("amos", amos, ""),
    "BIDS": ("bids", bids, ""),
    "images beside labels": ("paired", paired, ""),
    "one folder per channel": ("paired", channel_folders, ""),
    "one folder per structure": ("structure_folders", structures, ""),
    "KiTS": ("patient_folders", kits, ""),
    "BraTS": ("patient_folders", brats, ""),
    "TotalSegmentator": ("patient_folders", totalsegmentator, ""),
    "one folder per class": ("class_folders", classes, ""),
    "DICOM": ("dicom_tree", dicom, ""),
    "pattern": ("pattern", pattern, PATTERN),
}
