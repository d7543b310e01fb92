"""A study by command: a mosaic, uneven slices, and segmentations of one bit in JPEG 2000."""

from __future__ import annotations

import json
from pathlib import Path

import hard_series as hs
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from data.dicom.test_siemens import mosaic
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, generate_uid

from medfed.cli import main

SHAPE = (9, 32, 32)  # nine slices: a mosaic of 3 x 3
STUDY = """\
name: hard
seed: 1
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet, channels: [4, 8], residual_units: 0}
data:
  kind: images
  spacing_mm: [2, 2, 2]
  patch: [16, 16, 8]
  read: {uneven: resample}
  resample_labels: true
  normalise: {kind: percentile}
train: {rounds: 1, epochs: 1, batch: 2, optimiser: {kind: adamw, lr: 0.01}}
evaluation: {draws: 20, smallest_group: 1, local_models: false, pooled_model: false}
sites: {north: north, south: south}
site_overrides: {north: {classes: {1: lesion}}, south: {classes: {1: lesion}}}
"""


def series_of(number: int) -> hs.Series:
    uids = {name: generate_uid() for name in ("study", "series", "frame")}
    grid = {"spacing_mm": (2, 2), "step_mm": 2.0, "origin_mm": (-10.0 - number, -20.0, 30.0)}
    return hs.Series(SHAPE, modality="MR", slope=1.0, intercept=0.0, uids=uids, **grid)


def mask() -> np.ndarray:
    """Return a lesion, (slices, rows, columns)."""
    lesion = np.zeros(SHAPE, bool)
    lesion[3:6, 5:10, 6:11] = True
    return lesion


def write_label(path: Path, series: hs.Series) -> str:
    """Write the lesion as a segmentation of one bit per pixel in JPEG 2000."""
    from openjpeg.utils import encode_array

    slices = [k for k in range(SHAPE[0]) if mask()[k].any()]
    ds = hs.segmentation(series, [(1, k, mask()[k]) for k in slices], titles=["lesion"])
    streams = [
        encode_array(mask()[k].astype(np.uint8), bits_stored=1, photometric_interpretation=2) for k in slices
    ]
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    hs.write(ds, path.with_suffix(".dcm"))
    return path.with_suffix(".dcm").name


def write_nifti(path: Path, series: hs.Series) -> str:
    """Write the lesion as NIfTI on the series' own grid."""
    saved = nib.Nifti1Image(hs.as_xyz(mask().astype(np.uint8)), hs.expected_affine(series))
    nib.save(saved, path.with_suffix(".nii.gz"))
    return path.with_suffix(".nii.gz").name


def write_hospital(folder: Path) -> None:
    """Write eight patients: the second's series is a mosaic, the third's lacks a slice."""
    rows = ["case,patient,image,label,split"]
    for number in range(8):
        series, place = series_of(number), folder / f"mr{number}"
        if number == 1:
            place.mkdir(parents=True)
            hs.write(mosaic(series), place / "mosaic.dcm")
        else:
            files = hs.write_series(place, series)
        if number == 2:
            files[4].unlink()
        write = write_nifti if number in (1, 2) else write_label
        label = write(folder / f"label{number}", series)
        split = ("train", "train", "train", "train", "train", "val", "test", "test")[number]
        rows.append(f"c{number},p{number},mr{number},{label},{split}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_check_and_train_take_a_mosaic_uneven_slices_and_one_bit_jpeg_2000(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.data.preflight.examination.MAX_PROCESSES", 1)  # others take seconds to start
    for site in ("north", "south"):
        write_hospital(tmp_path / site)
    study, run = tmp_path / "study.yaml", CliRunner()
    study.write_text(STUDY)
    checked = run.invoke(main, ["check", str(tmp_path / "north"), "--study", str(study), "--json"])
    facts = json.loads(checked.output)
    assert checked.exit_code < 2, [problem["cases"] for problem in facts["problems"]]
    assert [case["read"] for case in facts["cases"]] == [True] * 8
    assert {tuple(case["shape"]) for case in facts["cases"]} == {(32, 32, 9)}
    # 3 x 5 x 5 voxels of lesion in each case, whatever its format.
    assert [case["classes"]["1"] for case in facts["cases"]] == [75] * 8
    trained = run.invoke(main, ["train", str(study), "--out", str(tmp_path / "run")])
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "run" / "report.html").is_file()
    assert "left out" not in trained.output
    # Without the key the uneven series is left out, and the reason names the key.
    study.write_text(STUDY.replace("read: {uneven: resample}", "read: {uneven: refuse}"))
    checked = run.invoke(main, ["check", str(tmp_path / "north"), "--study", str(study), "--json"])
    facts = json.loads(checked.output)
    assert [case["read"] for case in facts["cases"]] == [number != 2 for number in range(8)]
    assert "1 slice is missing" in checked.output
    assert "set data.read.uneven to 'resample'" in checked.output
    assert "1 of 8 cases are left out" in checked.output
