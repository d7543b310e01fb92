"""Several findings per image, from hospitals' folders to report, predictions and exports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from medfed.cli import main
from medfed.pipeline import predict
from medfed.pipeline.export import export
from medfed.pipeline.train import train
from medfed.study.reading import read_study

torch.set_num_threads(1)

SIDE = 8
SITES = ("north", "south")


def make_radiographs(folder: Path, cases: int, seed: int) -> Path:
    """Write images with 'left' as stripes along x and 'right' along z, unlabelled in a third."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    lines = ["case,image,sex,Left,Right,empty,split"]
    for number in range(cases):
        left, right = int(number % 2), int(number // 2 % 2)
        image = generator.normal(0, 0.1, (SIDE,) * 3).astype(np.float32)
        image[::2] += 2 * left
        image[:, :, ::2] += 2 * right
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{number}.nii.gz")
        shown = "" if number % 3 == 0 else right
        split = ("train", "train", "val", "test")[number // 4 % 4]
        lines.append(f"{seed}-{number},{number}.nii.gz,{number % 2},{left},{shown},,{split}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two hospitals, the study that `medfed new` wrote, and its run."""
    folder = tmp_path_factory.mktemp("findings")
    for seed, site in enumerate(SITES):
        make_radiographs(folder / site, 32, seed)
    done = CliRunner().invoke(main, ["new", str(folder / "s.yaml"), *(str(folder / site) for site in SITES)])
    assert done.exit_code == 0, done.output
    assert "the columns left, right hold only 0, 1 and empty cells" in done.output
    study = yaml.safe_load((folder / "s.yaml").read_text())
    assert study["task"] == {"kind": "multilabel", "classes": ["left", "right"]}
    study["network"] |= {"width": 4, "max_pool": False, "first_kernel": 3}
    study["data"] |= {"patch": [8, 8, 8], "spacing_mm": "native", "normalise": {"kind": "none"}}
    study["data"]["augment"] = "none"
    study["train"] |= {"rounds": 3, "epochs": 4, "optimiser": {"kind": "adamw", "lr": 0.01}}
    study["evaluation"] = {"draws": 50, "smallest_group": 1, "robustness": True, "temperature": True}
    (folder / "s.yaml").write_text(yaml.safe_dump(study))
    train(folder / "s.yaml", out=folder / "run")
    return folder


def test_both_findings_are_learnt_and_reported(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "run" / "rows.jsonl").read_text().splitlines()]
    ours = {
        (row["metric"], row.get("structure")): row["value"]
        for row in rows
        if (row["model"], row["site"], row["split"]) == ("federated", "all", "test")
        and not row.get("group")
        and not row.get("against")
    }
    for structure in ("left", "right", None):
        assert ours["auroc", structure] > 0.9
    for metric in ("auprc", "sensitivity", "specificity", "brier", "ece"):
        assert (metric, None) in ours
    assert any(row.get("against") == "local:north" and row["metric"] == "auroc" for row in rows)
    assert any((row.get("group") or "").startswith("condition=noise") for row in rows)
    page = (folder / "run" / "report.html").read_text()
    assert "Federated model: AUROC" in page
    assert "right" in page


def test_a_prediction_has_one_probability_per_finding(folder: Path) -> None:
    predict.predict(folder / "run", folder / "north", folder / "predicted")
    lines = list(csv.DictReader((folder / "predicted" / "predictions.csv").open()))
    assert list(lines[0]) == ["case", "probability of left", "probability of right"]
    sums = [float(line["probability of left"]) + float(line["probability of right"]) for line in lines]
    assert min(sums) < 0.8
    assert max(sums) > 1.2


@pytest.mark.parametrize("kind", ["torchscript", "bundle"])
def test_an_export_gives_each_finding_its_own_probability(folder: Path, kind: str) -> None:
    export(folder / "run", folder / kind, format=kind)
    (path,) = (folder / kind).rglob("model.ts")
    image = np.zeros((1, 1, 8, 8, 8), np.float32)
    image[:, :, ::2] += 2
    image[..., ::2] += 2
    both = torch.jit.load(str(path))(torch.from_numpy(image))[0]
    assert (both > 0.5).all()


def test_check_says_which_finding_a_hospital_cannot_teach(folder: Path) -> None:
    done = CliRunner().invoke(main, ["check", str(folder / "north"), "--study", str(folder / "s.yaml")])
    assert done.exit_code < 2, done.output
    broken = make_radiographs(folder / "west", 16, 5)
    text = (broken / "cases.csv").read_text().replace("Left", "Lefty")
    (broken / "cases.csv").write_text(text)
    done = CliRunner().invoke(main, ["check", str(broken), "--study", str(folder / "s.yaml")])
    assert done.exit_code == 2
    assert "no column 'left', which the study predicts; is it 'lefty'?" in " ".join(done.output.split())


def test_a_network_for_masks_is_refused(folder: Path) -> None:
    from medfed.errors import StudyError

    with pytest.raises(StudyError, match="'unet' does not serve task 'multilabel'"):
        read_study(folder / "s.yaml", ("network={kind: unet}",))
