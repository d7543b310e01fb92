"""Small MONAI Bundles, as folders and zips, for tests of what a study starts from."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch

SEGRESNET: dict[str, Any] = {
    "_target_": "SegResNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "init_filters": 8,
    "blocks_down": [1, 1],
    "blocks_up": [1],
}
METADATA = {
    "version": "0.2.0",
    "name": "Spleen",
    "license": "Apache-2.0",
    "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen"}}}},
}


def write_bundle(folder: Path, weights: object, definition: object = SEGRESNET, **more: object) -> Path:
    """Write a bundle with these weights and network, and further entries of train.json; return its folder."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {"network_def": definition, "network": "$@network_def.to(@device)", **more}
    (folder / "configs" / "train.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    torch.save(weights, folder / "models" / "model.pt")
    return folder


def zip_bundle(folder: Path, root: str = "spleen/") -> Path:
    """Write a bundle's folder as a zip beside it, and return the zip."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                opened.write(file, root + str(file.relative_to(folder)))
    return path
