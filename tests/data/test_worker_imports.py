"""What workers share: after their loader is made, reading a case imports nothing any more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hard_series as hs
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import uid

ROOT = Path(__file__).parents[2]
# Of a fresh process: what is imported by making the loader, and what by reading each case after that.
SCRIPT = """
import json, sys
from medfed.data.datamodule import SiteDataModule
from medfed.data.settings import Images
dims, workers, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
shape = {"patch": (16, 16, 4), "spacing_mm": (2.0, 2.0, 3.0)}
if dims == 2:
    shape = {"patch": (16, 16), "spacing_mm": "native"}
settings = Images(spatial_dims=dims, cache="none", workers=workers, **shape)
data = SiteDataModule.open(folder, settings, "segment", site_secret=b"a" * 32, classes=2)
opened = set(sys.modules)
loader = data.train_dataloader()
made = set(sys.modules)
for item in range(len(loader.dataset)):
    loader.dataset[item]
read = set(sys.modules)
print(json.dumps([sorted(opened), sorted(made - opened), sorted(read - made)]))
"""


def imported(folder: Path, dims: int, workers: int = 2) -> tuple[set[str], set[str], set[str]]:
    """Return what opening the site had imported, what making its loader added, and what reading added."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(dims), str(workers), str(folder)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened, made, read = json.loads(done.stdout)
    return set(opened), set(made), set(read)


def listed(folder: Path, image: str, label: str) -> Path:
    rows = f"case,patient,image,label,split\na,a,{image},{label},train\n"
    (folder / "cases.csv").write_text(rows, encoding="utf-8")
    return folder


def pictures(folder: Path, ending: str = "png") -> Path:
    grey = np.arange(24 * 20, dtype=np.uint8).reshape(24, 20)
    Image.fromarray(grey).save(folder / f"a.{ending}")
    Image.fromarray((grey > 99).astype(np.uint8)).save(folder / "a_label.png")
    return listed(folder, f"a.{ending}", "a_label.png")


def nifti(folder: Path) -> Path:
    voxels = np.arange(20 * 18 * 6, dtype=np.int16).reshape(20, 18, 6)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "a.nii.gz")
    nib.save(nib.Nifti1Image((voxels > 99).astype(np.uint8), np.eye(4)), folder / "a_label.nii.gz")
    return listed(folder, "a.nii.gz", "a_label.nii.gz")


def dicom(folder: Path) -> Path:
    (folder / "scan").mkdir()
    series = hs.Series(shape=(4, 40, 36))
    for k, syntax in enumerate((uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, None)):
        ds = hs.make_slice(series, k)
        if syntax is not None:
            ds.compress(syntax, generate_instance_uid=False)
        hs.write(ds, folder / f"scan/{k}.dcm")
    mask = np.ones((40, 36), bool)
    hs.write(hs.segmentation(series, [(1, 0, mask), (1, 1, mask)]), folder / "seg.dcm")
    return listed(folder, "scan", "seg.dcm")


@pytest.mark.parametrize(
    ("write", "dims", "decoders"),
    [
        (pictures, 2, {"PIL.PngImagePlugin", "PIL.ImageOps"}),
        (nifti, 3, {"nibabel.nifti1"}),
        (dicom, 3, {"pydicom.encaps", "openjpeg", "rle", "jpeg_ls"}),
    ],
)
def test_reading_imports_nothing_after_the_loader_of_workers_is_made(
    write: Callable[[Path], Path], dims: int, decoders: set[str], tmp_path: Path
) -> None:
    opened, made, read = imported(write(tmp_path), dims)
    assert read == set()
    assert decoders | {"monai.transforms"} <= opened | made


def test_without_workers_the_loader_imports_nothing(tmp_path: Path) -> None:
    _, made, read = imported(pictures(tmp_path), 2, workers=0)
    assert "medfed.data.read" not in made
    assert read
