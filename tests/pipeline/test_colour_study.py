"""A study of DICOM in colour, beside a hospital that has the same as PNG: `new`, `check` and `train`."""

from __future__ import annotations

from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.uid import UltrasoundImageStorage, generate_uid

from medfed.evaluation.rows import read_cases
from medfed.pipeline import train as run
from medfed.pipeline.check import check
from medfed.pipeline.drafting import draft_study, write_draft

torch.set_num_threads(1)


def write_dicom(path: Path, rgb: np.ndarray, patient: str) -> None:
    ds = hs.make_slice(hs.Series(uids={name: generate_uid() for name in ("study", "series", "frame")}), 0)
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(ds, word)
    del ds.RescaleIntercept
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    ds.Modality, ds.PatientID, ds.PhotometricInterpretation = "US", patient, "RGB"
    ds.SamplesPerPixel, ds.PlanarConfiguration, (ds.Rows, ds.Columns) = 3, 0, rgb.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = rgb.tobytes()
    hs.write(ds, path)


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Path]:
    """Two hospitals whose images are red or blue: one has DICOM, one PNG."""
    for seed, site in enumerate(("north", "south")):
        generator = np.random.default_rng(seed)
        (tmp_path / site).mkdir()
        rows = ["case,patient,image,target"]
        for number in range(12):
            rgb = generator.integers(60, 120, (20, 24, 3)).astype(np.uint8)
            rgb[..., 2 * (number % 2)] += 90
            name = f"x{number}.{'dcm' if site == 'north' else 'png'}"
            if site == "north":
                write_dicom(tmp_path / site / name, rgb, f"P{number}")
            else:
                Image.fromarray(rgb).save(tmp_path / site / name)
            rows.append(f"c{number},P{number},{name},{number % 2}")
        (tmp_path / site / "cases.csv").write_text("\n".join(rows) + "\n")
    return {site: tmp_path / site for site in ("north", "south")}


@pytest.mark.slow
def test_a_drafted_study_has_three_channels_on_one_scale_and_check_passes(tmp_path, sites, capsys) -> None:
    write_draft(tmp_path / "c.yaml", draft_study("c", sites, {}))
    text = (tmp_path / "c.yaml").read_text()
    assert "channels: 3" in text
    assert "normalise: {kind: window, low: 0, high: 255}" in text
    assert check(sites["north"], tmp_path / "c.yaml", answer=lambda _: False, page=None) == 0  # no warning
    (tmp_path / "grey.yaml").write_text(text.replace("channels: 3", "channels: 1"))
    capsys.readouterr()
    assert check(sites["north"], tmp_path / "grey.yaml", answer=lambda _: False, page=None) == 2
    assert "data.channels is 1; it is in colour: leave it out" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_it_trains(tmp_path, sites) -> None:
    write_draft(tmp_path / "c.yaml", draft_study("c", sites, {}))
    small = ("train.rounds=1", "train.epochs=1", "network.depth=10", "network.width=8", "evaluation.draws=20")
    small += ("evaluation.local_models=false", "evaluation.pooled_model=false", "evaluation.smallest_group=1")
    done = run.train(tmp_path / "c.yaml", out=tmp_path / "run", overrides=small)
    assert {case.site for case in read_cases(done.cases)} == {"north", "south"}
