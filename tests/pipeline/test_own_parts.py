"""The package of docs/how-to/own-code.md: own task, data module, transform, network, metric and layout."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import medfed
from medfed.cli import main
from medfed.errors import RunError, StudyError
from medfed.pipeline.export import export
from medfed.registry import NONE_ADDED, kinds, use_kinds
from medfed.study.plugins import load_plugin
from medfed.testing import (
    DataModuleExample,
    check_datamodule,
    check_metric_family,
    check_network,
    check_task,
    check_transform,
)

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "own-code.md").read_text()
SITES = ("north", "south")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nothing_stays_in_use():
    yield
    use_kinds(NONE_ADDED)


def write_package(folder: Path) -> Path:
    """Write the page's package."""
    for name, source in re.findall(r"```py\n# (parts/\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return folder / "parts"


def write_visits(folder: Path, visits: int = 40) -> None:
    """Write JSON files of visits, in which the first measurement minus the second is near the age."""
    folder.mkdir(exist_ok=True)
    generator = random.Random(sum(folder.name.encode()))
    for number in range(visits):
        age = generator.randint(30, 80)
        measured = [age / 25 + generator.gauss(0, 0.1), generator.gauss(0, 0.1), 1.0]
        visit = {"patient": f"{folder.name}{number // 2}", "measured": measured, "age": age}
        (folder / f"{folder.name}{number}.json").write_text(json.dumps(visit))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the package, two hospitals' visits, the page's study, and its run."""
    folder = tmp_path_factory.mktemp("own")
    write_package(folder)
    for site in SITES:
        write_visits(folder / site)
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    study = next(block for block in blocks if "name" in block) | {
        "evaluation": {"draws": 50, "pooled_model": False}
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    result = CliRunner().invoke(main, ["train", str(folder / "study.yaml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output + result.stderr
    (folder / "said.txt").write_text(result.output + result.stderr)
    use_kinds(NONE_ADDED)
    return folder


def test_training_says_whose_code_runs_and_the_report_has_the_own_metric(place):
    said = (place / "said.txt").read_text()
    assert "plug-in 'parts': its code runs here, and adds datamodules 'cohort'" in said
    assert "Federated model: Age error" in said
    rows = [json.loads(line) for line in (place / "run" / "rows.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["metric"] == "age_error" and row["model"] == "federated"]
    errors = [row["value"] for row in rows if row.get("against") is None]
    assert errors
    assert all(0 < value < 25 for value in errors if value is not None)
    assert "Age error" in (place / "run" / "report.html").read_text()
    # Patients of the hospitals stay apart by split, and their ids stay out of what may leave.
    public = "".join(path.read_text() for path in (place / "run").glob("*.json*"))
    assert "north1" not in public
    assert str(place) not in (place / "run" / "study.json").read_text()


def test_a_new_process_writes_the_report_again_evaluates_and_predicts(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / "report.html").unlink()
    west = tmp_path / "west"
    write_visits(west, 10)
    assert "age_error" not in kinds("metrics")
    for words in (["report", run], ["evaluate", run, "--data", west, "--name", "west", "--all-cases"]):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output + result.stderr
        use_kinds(NONE_ADDED)
    assert "Age error" in (run / "report.html").read_text()
    ages = {path.stem: json.loads(path.read_text())["age"] for path in west.glob("*.json")}
    for path in west.glob("*.json"):  # nobody knows the ages
        path.write_text(json.dumps({**json.loads(path.read_text()), "age": None}))
    result = CliRunner().invoke(
        main, ["predict", str(run), "--data", str(west), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output + result.stderr
    lines = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(lines) == 10
    key = {
        line["token"]: line["case"]
        for line in csv.DictReader((tmp_path / "out" / "stays-in-hospital.csv").open())
    }
    predicted = [float(line["years"]) for line in lines]
    assert np.corrcoef(predicted, [ages[key[line["case"]]] for line in lines])[0, 1] > 0.8


def test_a_case_that_its_code_cannot_read_is_left_out_by_file_and_line(place, tmp_path):
    for site in SITES:
        write_visits(tmp_path / site, 20)
    write_package(tmp_path)
    shutil.copy(place / "study.yaml", tmp_path)
    broken = next((tmp_path / "north").glob("*.json"))
    broken.write_text('{"patient": "a-name", "measured": "none"}')
    result = CliRunner().invoke(
        main,
        ["train", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run"), "--set", "train.rounds=1"],
    )
    assert result.exit_code == 0, result.output + result.stderr
    assert "1 of 20 cases are left out, as they cannot be used" in result.output + result.stderr
    notes = "".join(path.read_text() for path in (tmp_path / "north" / ".medfed").rglob("unusable*"))
    assert "plug-in 'parts': cohort.py, line " in notes
    assert "a-name" not in result.output + result.stderr


def test_an_error_of_its_code_in_training_is_one_line(place, tmp_path):
    for site in SITES:
        write_visits(tmp_path / site, 20)
    task = write_package(tmp_path) / "task.py"
    task.write_text(
        task.read_text().replace("        loss = self.loss(batch)\n", "        loss = {}['a-name']\n")
    )
    shutil.copy(place / "study.yaml", tmp_path)
    result = CliRunner().invoke(main, ["train", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run")])
    assert result.exit_code != 0
    line = next(n for n, text in enumerate(task.read_text().splitlines(), 1) if "a-name" in text)
    assert f"plug-in 'parts': task.py, line {line}" in result.stderr
    assert "Traceback" not in result.stderr


def test_code_that_changed_since_the_run_is_refused(place, tmp_path):
    write_package(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    text = (run / "study.yaml").read_text().replace(str(place / "parts"), str(tmp_path / "parts"))
    (run / "study.yaml").write_text(text)
    with (tmp_path / "parts" / "task.py").open("a") as file:
        file.write("\n")
    with pytest.raises(StudyError, match=r"study\.yaml: plug-in 'parts': its folder has the digest"):
        medfed.evaluate(run, place / "north", name="west")


def test_a_network_that_takes_what_only_own_code_knows_is_not_exported(place, tmp_path):
    with pytest.raises(RunError, match="the study's data are of its own data module 'cohort'"):
        export(place / "run", tmp_path / "out", format="torchscript")


def test_own_layout_and_transform_with_medfeds_images(place, tmp_path):
    write_package(tmp_path)
    for site in SITES:
        generator = np.random.default_rng(sum(site.encode()))
        for number in range(8):
            folder = tmp_path / site / f"P{number}"
            folder.mkdir(parents=True)
            mask = np.zeros((8, 8, 8), np.uint8)
            x, y, z = generator.integers(0, 4, 3)
            mask[x : x + 4, y : y + 4, z : z + 4] = 1
            image = generator.normal(0, 1, (8, 8, 8)).astype(np.float32) + 4 * mask
            nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "scan.nii.gz")
            nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / "mask.nii.gz")
    study = {
        "name": "boxes",
        "plugins": ["parts"],
        "task": {"kind": "segment", "classes": ["background", "box"]},
        "network": {"kind": "unet", "channels": [4, 8], "residual_units": 0},
        "data": {
            "kind": "images",
            "layout": "visits",
            "transforms": [{"kind": "sharpened", "amount": 1.0}, {"kind": "gamma"}],
            "patch": [8, 8, 8],
        },
        "train": {"rounds": 1, "batch": 2},
        "evaluation": {"draws": 50, "local_models": False, "pooled_model": False, "robustness": False},
        "sites": {site: site for site in SITES},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run = medfed.train(tmp_path / "study.yaml", out=tmp_path / "run")
    assert run.read_facts().layouts == {"north": "visits", "south": "visits"}
    with pytest.raises(
        RunError, match=r"images are prepared by 'sharpened' \(data.transforms\), for which MONAI"
    ):
        export(run, tmp_path / "out", format="bundle")
    # Another recording of the transform is another preparation.
    batch = next(iter(_data(tmp_path, 1.0).val_dataloader()))["image"]
    plain = next(iter(_data(tmp_path, 0.0).val_dataloader()))["image"]
    expected = plain + (plain - plain.mean())
    np.testing.assert_allclose(batch, expected, atol=1e-5)


def _data(folder: Path, amount: float):
    from medfed.pipeline.factory import hospital_of

    settings = f"data.transforms=[{{kind: sharpened, amount: {amount}}}]"
    return hospital_of(
        medfed.read_study(folder / "study.yaml", [settings]), "north", str(folder / "north")
    ).data


def test_each_part_of_the_page_keeps_its_contract(place):
    parts = load_plugin("parts", place / "parts").kinds
    use_kinds(NONE_ADDED)
    check_datamodule(
        DataModuleExample(
            parts["datamodules"]["cohort"](), lambda folder: write_visits(folder, 12), 12, "table"
        )
    )
    check_transform(parts["transforms"]["sharpened"]())
    check_network(parts["networks"]["ranked"]())
    medfed.read_study(place / "study.yaml")
    check_metric_family(parts["metrics"]["age_error"]())
    check_task(parts["tasks"]["age"]())
