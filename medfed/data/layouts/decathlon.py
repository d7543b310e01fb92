"""The folders of the Medical Segmentation Decathlon, and those of nnU-Net's raw data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from medfed.data.case import first_path
from medfed.data.layouts._files import NIFTI_ENDINGS, is_nifti, stem, visible
from medfed.data.layouts._layout import NO_PATIENTS, CaseError, CaseListing, Layout, ListedCase
from medfed.errors import DataError, ImageError


class Decathlon(Layout, tag="decathlon", frozen=True):
    """imagesTr with labelsTr and dataset.json.

    nnU-Net has one file per channel (`_0000`), the Decathlon one file per case.
    """

    title: ClassVar[str] = "Medical Segmentation Decathlon"
    nnunet_title: ClassVar[str] = "nnU-Net raw"
    evidence: ClassVar[str] = "imagesTr with labelsTr and dataset.json"
    order: ClassVar[int] = 20

    def recognises(self, folder: Path) -> bool:
        return (
            (folder / "imagesTr").is_dir()
            and (folder / "labelsTr").is_dir()
            and (folder / "dataset.json").is_file()
        )

    def read(self, folder: Path) -> CaseListing:
        class_names, channels = _describe(folder / "dataset.json")
        cases = [_case(folder, label, channels) for label in visible(folder / "labelsTr") if is_nifti(label)]
        notes = []
        labelled = {first_path(source).name for case in cases for source in case.image}
        spare = sum(is_nifti(path) and path.name not in labelled for path in visible(folder / "imagesTr"))
        if spare:
            notes.append(f"{spare} images in imagesTr have no label and are left out")
        if (folder / "imagesTs").is_dir():
            notes.append("imagesTs has no labels and is left out; medfed cuts a test split from imagesTr")
        title = self.nnunet_title if channels else self.title
        return CaseListing(title, tuple(cases), (*notes, NO_PATIENTS), class_names)


def _describe(path: Path) -> tuple[tuple[str, ...], int]:
    """Return the classes' names in order, and the number of channels that nnU-Net names (0: Decathlon)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = dict(content["labels"])
        nnunet = "channel_names" in content
        # The Decathlon writes {"1": "anterior"}, nnU-Net {"anterior": 1}.
        pairs = [(v, k) if nnunet else (k, v) for k, v in labels.items()]
        names = {int(number): str(name) for number, name in pairs}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            "dataset.json does not name its labels; expected 'labels': {'0': 'background', ...}"
        ) from None
    channels = len(content["channel_names"]) if nnunet else 0
    return tuple(names[number] for number in sorted(names)), channels


def _case(folder: Path, label: Path, nnunet_channels: int) -> ListedCase:
    name, source = stem(label), folder / "imagesTr"
    names = [f"{name}_{i:04d}" for i in range(nnunet_channels)] if nnunet_channels else [name]
    images = tuple(_nifti(source, one) for one in names)
    if not all(image.exists() for image in images):
        if nnunet_channels and _nifti(source, name).exists():
            raise CaseError(
                name,
                "dataset.json has channel_names, as nnU-Net writes it, so that an image is expected as "
                "CASE_0000; imagesTr has it without _0000; rename the images, or omit channel_names and "
                "name the labels as the Decathlon does: 'labels': {'0': 'background', ...}",
            )
        raise CaseError(
            name,
            "labelsTr has its label, imagesTr lacks its image; restore the file or remove the label",
            ImageError,
        )
    return ListedCase(id=name, patient=name, image=images, label=label)


def _nifti(folder: Path, name: str) -> Path:
    """Return the NIfTI of this exact name, whichever ending it has."""
    files = [path for ending in NIFTI_ENDINGS if (path := folder / f"{name}{ending}").exists()]
    if len(files) > 1:
        raise DataError(
            "a folder has one image both as .nii and as .nii.gz; keep one, as nothing says that they are the "
            "same"
        )
    return files[0] if files else folder / f"{name}{NIFTI_ENDINGS[0]}"
