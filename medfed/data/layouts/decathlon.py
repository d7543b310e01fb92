"""The folders of the Medical Segmentation Decathlon, and those of nnU-Net's raw data."""

from __future__ import annotations

import json
from pathlib import Path

from medfed.data.index import Case
from medfed.data.layouts._layout import NIFTI_ENDINGS, NO_PATIENTS, Found, is_nifti, stem, visible
from medfed.data.splits import UNASSIGNED, case_token
from medfed.errors import DataError, ImageError


def is_decathlon(folder: Path) -> bool:
    """Whether there are imagesTr, labelsTr and dataset.json."""
    return (
        (folder / "imagesTr").is_dir()
        and (folder / "labelsTr").is_dir()
        and (folder / "dataset.json").is_file()
    )


def decathlon(folder: Path, site_secret: bytes) -> Found:
    """List imagesTr with labelsTr, for nnU-Net with a file a channel (`_0000`), else a file a case."""
    try:
        described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        labels = dict(described["labels"])
        nnunet = "channel_names" in described
        # The Decathlon writes {"1": "anterior"}, nnU-Net {"anterior": 1}.
        numbered = (
            {int(v): str(k) for k, v in labels.items()}
            if nnunet
            else {int(k): str(v) for k, v in labels.items()}
        )
    except (ValueError, KeyError, TypeError):
        raise DataError(
            "dataset.json does not name its labels; expected 'labels': {'0': 'background', ...}"
        ) from None
    channels = len(described["channel_names"]) if nnunet else 1
    cases = []
    for label in visible(folder / "labelsTr"):
        if not is_nifti(label):
            continue
        name = stem(label)
        token = case_token(site_secret, name)
        if nnunet:
            images = tuple(_nifti(folder / "imagesTr", f"{name}_{i:04d}") for i in range(channels))
        else:
            images = (_nifti(folder / "imagesTr", name),)
        for image in images:
            if not image.exists():
                if nnunet and _nifti(folder / "imagesTr", name).exists():
                    raise DataError(
                        f"case {token}: dataset.json has channel_names, as nnU-Net writes it, so that an image is expected as "
                        "CASE_0000; imagesTr has it without _0000; rename the images, or leave channel_names out and "
                        "name the labels as the Decathlon does: 'labels': {'0': 'background', ...}"
                    )
                raise ImageError(
                    f"case {token}: labelsTr has its label, imagesTr lacks its image; restore the file or "
                    "remove the label"
                )
        cases.append(Case(id=name, patient=name, token=token, image=images, label=label, split=UNASSIGNED))
    notes = []
    labelled = {path.name for case in cases for path in case.image}
    spare = [path for path in visible(folder / "imagesTr") if is_nifti(path) and path.name not in labelled]
    if spare:
        notes.append(f"{len(spare)} images in imagesTr have no label and are left out")
    if (folder / "imagesTs").is_dir():
        notes.append("imagesTs has no labels and is left out; medfed cuts a test split from imagesTr")
    notes.append(NO_PATIENTS)
    names = tuple(numbered[i] for i in sorted(numbered))
    return Found(
        "nnU-Net raw" if nnunet else "Medical Segmentation Decathlon", tuple(cases), tuple(notes), names
    )


def _nifti(folder: Path, name: str) -> Path:
    """Return the NIfTI of this exact name, whichever ending it has."""
    found = [folder / f"{name}{ending}" for ending in NIFTI_ENDINGS if (folder / f"{name}{ending}").exists()]
    if len(found) > 1:
        raise DataError(
            "a folder has one image both as .nii and as .nii.gz; keep one, as nothing says that they are "
            "the same"
        )
    return found[0] if found else folder / f"{name}{NIFTI_ENDINGS[0]}"
