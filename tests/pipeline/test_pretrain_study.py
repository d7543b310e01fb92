"""Pretraining over hospitals without labels, and the segmentation that starts from its run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from medfed.cli import main
from medfed.deployment.site_file import SiteFile
from medfed.deployment.study_page import OwnPart, describe
from medfed.errors import RunError, StudyError
from medfed.exchange.folder import Folder
from medfed.pipeline.export import export
from medfed.pipeline.small_scores import PatientCounts
from medfed.pipeline.train import train
from medfed.runs.checkpoints import load_checkpoint
from medfed.study.reading import read_study

torch.set_num_threads(1)

SHARED = """
seed: 0
network: {kind: unet, channels: [4, 8]}
data: {kind: images, spacing_mm: native, patch: [8, 8, 8], normalise: {kind: none}, augment: none}
train: {rounds: 2, epochs: 1, batch: 2, optimiser: {kind: adamw, lr: 0.01}}
evaluation: {local_models: false, pooled_model: false, robustness: false, draws: 20}
"""
PRETRAIN = (
    "name: pretraining\ntask: {kind: pretrain, block: 2}\nsites: {north: bare/north, south: bare/south}"
)
SEGMENT = """name: later
task: {kind: segment, classes: [background, cube]}
sites: {north: drawn/north, south: drawn/south}
start: {path: run, anew: [head]}
"""


def make_hospital(folder: Path, seed: int, labelled: bool) -> None:
    """Write cubes in noise: 6 training, 5 validation and 5 test patients, with or without their labels."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    heading = ["case", "image", "split", *(["label"] if labelled else [])]
    rows = []
    for number in range(16):
        label = np.zeros((10, 9, 8), np.uint8)
        x, y, z = generator.integers(0, 4, 3)
        label[x : x + 4, y : y + 4, z : z + 4] = 1
        image = (label + generator.normal(0, 0.1, label.shape)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{number}.nii.gz")
        split = "train" if number < 6 else "val" if number < 11 else "test"
        rows.append([f"{seed}-{number}", f"{number}.nii.gz", split])
        if labelled:
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / f"{number}-label.nii.gz")
            rows[-1].append(f"{number}-label.nii.gz")
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heading, *rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with hospitals without labels and their pretraining's run, and others with labels."""
    folder = tmp_path_factory.mktemp("pretraining")
    for seed, site in enumerate(("north", "south")):
        make_hospital(folder / "bare" / site, seed, labelled=False)
        make_hospital(folder / "drawn" / site, seed + 2, labelled=True)
    (folder / "pretrain.yaml").write_text(PRETRAIN + SHARED)
    (folder / "later.yaml").write_text(SEGMENT + SHARED)
    train(folder / "pretrain.yaml", out=folder / "run")
    return folder


def rows_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]


def test_it_trains_without_a_label_and_is_measured_by_its_reconstruction(folder: Path) -> None:
    rounds = [json.loads(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
    assert {line["site"] for line in rounds if line["status"] == "merged"} == {"north", "south"}
    assert all("val/reconstruction_error" in line["scalars"] for line in rounds)
    rows = rows_of(folder / "run")
    assert {row["metric"] for row in rows} == {"patients", "reconstruction_error"}
    value = {
        row["model"]: row["value"]
        for row in rows
        if (row["site"], row["metric"]) == ("all", "reconstruction_error") and not row.get("against")
    }
    assert value["federated"] < value["untrained"]


def test_scores_of_too_few_validation_patients_stay(folder: Path, tmp_path: Path) -> None:
    few = ["evaluation.smallest_group=6", "train.rounds=1"]
    train(folder / "pretrain.yaml", out=tmp_path / "few", overrides=few)
    lines = [json.loads(line) for line in (tmp_path / "few" / "rounds.jsonl").read_text().splitlines()]
    assert not [name for line in lines for name in line["scalars"] if name.startswith("val/")]


def test_its_report_claims_no_segmentation(folder: Path) -> None:
    page = (folder / "run" / "report.html").read_text()
    assert "learn from the images without labels" in page
    assert "outlines and classifies nothing" in page
    assert "no mask, class or risk" in page
    assert "expect a mean reconstruction error of" in page
    for wrong in ("Dice", "Label map", "operating point", "missed"):
        assert wrong not in page


def test_the_page_that_a_hospital_agrees_to_says_that_no_label_is_read(folder: Path) -> None:
    study = read_study(folder / "pretrain.yaml")
    site = SiteFile(name="north", data="", exchange=Folder(url="/mnt/share"))
    page = describe(OwnPart(study, site, 6, PatientCounts(12, 12)), "d" * 64)
    assert "pretrain (hidden parts of images are reconstructed; no label is needed or read)" in page
    assert "Dice" not in page
    assert "val/loss, val/reconstruction_error" in page
    assert "whether its labels" not in page


def test_a_segmentation_starts_from_the_run_folder(folder: Path) -> None:
    train(folder / "later.yaml", out=folder / "later-run", overrides=["train.only=[model.2]"])
    with (folder / "later-run" / "start.csv").open() as file:
        told = {row["tensor"]: row["what"] for row in csv.DictReader(file)}
    pretrained = load_checkpoint(folder / "run" / "checkpoints" / "federated.ckpt")
    # With `only`, what is loaded stays as it was, and is not in the later checkpoint.
    assert {what for name, what in told.items() if name.startswith("model.2")} == {"new"}
    assert {what for name, what in told.items() if name.startswith("model.0")} == {"loaded"}
    assert f"network.{next(iter(told))}" in pretrained
    assert {row["metric"] for row in rows_of(folder / "later-run")} >= {"dice"}


def test_labels_that_are_there_are_not_read(folder: Path, tmp_path: Path) -> None:
    """Broken labels cost nothing, and images train the same with and without labels beside them."""
    for site in ("north", "south"):
        for path in (folder / "drawn" / site).glob("*-label.nii.gz"):
            path.rename(path.with_suffix(".kept"))
            path.write_bytes(b"no label")
    bare = tmp_path / "bare"
    for site in ("north", "south"):
        (bare / site).mkdir(parents=True)
        for path in (folder / "drawn" / site).glob("[0-9]*.nii.gz"):
            if "label" not in path.name:
                (bare / site / path.name).write_bytes(path.read_bytes())
        with (folder / "drawn" / site / "cases.csv").open() as file:
            rows = [row[:3] for row in csv.reader(file)]
        with (bare / site / "cases.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    try:
        weights = []
        for name, where in (("with", folder / "drawn"), ("without", bare)):
            sites = [f"sites={{north: {where / 'north'}, south: {where / 'south'}}}", "train.rounds=1"]
            train(folder / "pretrain.yaml", out=tmp_path / name, overrides=sites)
            weights.append(load_checkpoint(tmp_path / name / "checkpoints" / "federated.ckpt"))
    finally:
        for site in ("north", "south"):
            for path in (folder / "drawn" / site).glob("*-label.nii.kept"):
                path.replace(path.with_suffix(".gz"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_predict_writes_each_images_error(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main,
        [
            "predict",
            str(folder / "run"),
            "--data",
            str(folder / "bare" / "north"),
            "--out",
            str(tmp_path / "p"),
        ],
    )
    assert done.exit_code == 0, done.output
    with (tmp_path / "p" / "predictions.csv").open() as file:
        values = [float(row["reconstruction_error"]) for row in csv.DictReader(file)]
    assert len(values) == 16
    assert all(value > 0 for value in values)


def test_a_bundle_is_refused_and_says_how_to_start_from_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"task 'pretrain' .*start: \{path: RUN, anew: \[head\]\}"):
        export(folder / "run", tmp_path / "bundle", format="bundle")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("task.block=8", r"task\.block: a block of 8 voxels per side covers a whole patch of 8 x 8 x 8"),
        ("data.balance=classes", r"data\.balance: classes are those of labels"),
        ("network={kind: resnet}", r"'resnet' does not serve task 'pretrain'; there are .*unet"),
        ("network={kind: fully_connected}", r"'fully_connected' does not serve task 'pretrain'"),
    ],
)
def test_what_does_not_suit_it_is_refused(folder: Path, override: str, problem: str) -> None:
    with pytest.raises(StudyError, match=problem):
        read_study(folder / "pretrain.yaml", [override])


def test_check_takes_a_folder_without_labels(folder: Path) -> None:
    done = CliRunner().invoke(
        main, ["check", str(folder / "bare" / "north"), "--study", str(folder / "pretrain.yaml"), "--json"]
    )
    told = json.loads(done.output)
    assert told["can_take_part"]
    assert not [one for one in told["problems"] if "label" in json.dumps(one)]
