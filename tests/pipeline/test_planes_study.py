"""Studies of pictures (PNG) from `medfed new` to the report and the predictions."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfed.evaluation.rows import read_cases
from medfed.pipeline import train as run
from medfed.pipeline.drafting import draft_study, write_draft
from medfed.pipeline.predict import predict
from medfed.pipeline.report import report_run
from medfed.runs.folder import RunFolder

torch.set_num_threads(1)

SITES = ("east", "north", "south")
SMALL = (
    "train.rounds=2",
    "train.epochs=1",
    "evaluation.draws=20",
    "evaluation.smallest_group=1",
    "evaluation.local_models=false",
    "evaluation.pooled_model=false",
)


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(generator: np.random.Generator, bright: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a grey picture of 40 x 48 with a bright square or none, and the square's mask."""
    mask = np.zeros((40, 48), np.uint8)
    if bright:
        row, column = generator.integers(4, 28, 2)
        mask[row : row + 10, column : column + 10] = 1
    noise = generator.normal(80, 10, mask.shape)
    return np.clip(noise + 120 * mask, 0, 255).astype(np.uint8), mask


def studied(tmp_path: Path, *overrides: str) -> RunFolder:
    sites = {site: tmp_path / site for site in SITES}
    write_draft(tmp_path / "pictures.yaml", draft_study("pictures", sites, {}))
    return run.train(tmp_path / "pictures.yaml", out=tmp_path / "run", overrides=(*SMALL, *overrides))


@pytest.mark.slow
def test_class_folders_of_pictures_from_new_to_the_report(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        generator = np.random.default_rng(seed)
        for number in range(24):
            name = ("normal", "pneumonia")[number % 2]
            write_png(
                tmp_path / site / name / f"{site}{number:03d}.png",
                picture(generator, name == "pneumonia")[0],
            )
    done = studied(tmp_path, "network.depth=10", "network.width=8")
    text = (tmp_path / "pictures.yaml").read_text()
    assert "spatial_dims: 2" in text
    assert "patch: [64, 64]" in text  # 48 x 40 pixels, rounded up to multiples of 32
    report = report_run(done.path).report.read_text()
    assert "volume" not in report.lower()
    assert {case.metric for case in read_cases(done.cases)} == {"probability"}
    out = predict(done.path, tmp_path / "north", tmp_path / "out")
    with (out / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 24
    assert all(
        float(line["probability of pneumonia"]) + float(line["probability of normal"]) == pytest.approx(1)
        for line in lines
    )


@pytest.mark.slow
def test_pictures_with_masks_are_measured_in_pixels_and_predicted_as_png(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        generator = np.random.default_rng(seed)
        for number in range(20):
            image, mask = picture(generator, True)
            write_png(tmp_path / site / "images" / f"{site}{number:03d}.png", image)
            write_png(tmp_path / site / "masks" / f"{site}{number:03d}.png", mask)
    done = studied(tmp_path, "network.channels=[8,16,32]", "network.residual_units=0")
    metrics = {case.metric for case in read_cases(done.cases)}
    assert {"dice", "hd95_px", "area_px"} <= metrics
    assert not [name for name in metrics if "mm" in name or name.endswith("_ml")]
    report = report_run(done.path).report.read_text()
    assert "HD95" in report
    assert "volume" not in report.lower()
    out = predict(done.path, tmp_path / "north", tmp_path / "out")
    with (out / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 20
    for line in lines:
        mask = np.asarray(Image.open(out / line["file"]))
        assert mask.shape == (40, 48)
        (area,) = (int(value) for name, value in line.items() if name.endswith(" px"))
        assert area == int((mask == 1).sum())


@pytest.mark.slow
def test_slices_of_volumes_are_trained_on_and_measured_as_volumes(tmp_path: Path) -> None:
    from hospitals import make_hospital, write_study

    for site in ("north", "south", "west"):
        make_hospital(tmp_path / site)
    study = write_study(tmp_path, rounds=1)
    flat = "spatial_dims: 2, slices: coronal, spacing_mm: [2, 2], patch: [16, 16], samples: 4"
    study.write_text(study.read_text().replace("spacing_mm: [2, 2, 2], patch: [16, 16, 16]", flat))
    done = run.train(study, out=tmp_path / "run")
    metrics = {case.metric for case in read_cases(done.cases)}
    assert {"dice", "hd95_mm", "volume_ml"} <= metrics
    assert not [name for name in metrics if "px" in name or "area" in name]
    out = predict(done.path, tmp_path / "west", tmp_path / "out")
    assert len(list(out.glob("*.nii.gz"))) == 6
