"""A hospital's folder as the Decathlon or nnU-Net writes it: imagesTr, labelsTr and dataset.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..hospital_folder import write_nifti


def decathlon(folder: Path, names: list[str], *, nnunet: bool = False) -> None:
    for name in names:
        for channel in ("_0000", "_0001") if nnunet else ("",):
            write_nifti(folder / "imagesTr" / f"{name}{channel}.nii.gz", np.zeros((4, 4, 4), np.float32))
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", np.zeros((4, 4, 4), np.uint8))
    # The Decathlon's archives carry macOS's shadow files.
    (folder / "imagesTr" / f"._{names[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
    (folder / "labelsTr" / f"._{names[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
    if nnunet:
        described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
    else:
        described = {
            "labels": {"0": "background", "1": "anterior", "2": "posterior"},
            "modality": {"0": "MRI"},
        }
    (folder / "dataset.json").write_text(json.dumps(described))
