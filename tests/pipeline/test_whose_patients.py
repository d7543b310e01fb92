"""A guarantee is refused for another hospital's patients, and says where nobody knows whose they are."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from medfed.data.screening import image_digest
from medfed.errors import RunError
from medfed.evaluation.rows import EVERY_SITE
from medfed.pipeline import predict
from medfed.pipeline import train as run
from medfed.pipeline.whose_patients import check_whose, guaranteed_name
from medfed.runs.folder import RunFolder
from medfed.runs.trained import write_trained

STUDY = """\
name: two-tables
seed: 5
task: {kind: tabular, classes: [healthy, ill]}
network: {kind: fully_connected, hidden: []}
data: {kind: table, features: [x, sex], categorical: {sex: [F, M]}, target: ill, standardise: none}
train: {rounds: 1, epochs: 1, batch: 8, optimiser: {kind: sgd, lr: 0.1}}
evaluation: {draws: 20, smallest_group: 2, guarantee: 0.5, confidence: 0.5, local_models: false, \
pooled_model: false, robustness: false}
sites: {north: north.csv, south: south.csv}
held_out: {west: west.csv}
"""


def table(path: Path, number: int, target: bool = True) -> Path:
    generator = np.random.default_rng(len(path.stem))
    lines = ["patient,x,sex,split" + (",ill" if target else "")]
    for one in range(number):
        split = ("train", "val", "test")[one % 3]
        cells = f"{path.stem}{one},{generator.normal():.6f},{'FM'[one % 2]},{split}"
        lines.append(cells + (f",{one % 2}" if target else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("whose")
    for site in ("north", "south", "west"):
        table(folder / f"{site}.csv", 24)
    (folder / "study.yaml").write_text(STUDY)
    return run.train(folder / "study.yaml", out=folder / "run")


def test_the_studys_folder_of_another_hospital_is_refused(done: RunFolder, tmp_path: Path) -> None:
    data = done.path.parent
    for other in ("south", "west"):
        said = f"a guarantee of 'north' was asked for, and by the study, this folder is that of '{other}'"
        with pytest.raises(RunError, match=said):
            predict.predict(done, data / f"{other}.csv", tmp_path / "out", name="north", guarantee="set")
    assert not (tmp_path / "out").exists()


def test_another_hospitals_patients_are_refused_wherever_they_lie(done: RunFolder, tmp_path: Path) -> None:
    """A copy without targets, among new patients: by the digests of the rows that trained."""
    lines = list(csv.reader((done.path.parent / "south.csv").open()))
    mixed = tmp_path / "mixed.csv"
    new = [["new1", "0.25", "F", "train"], ["new2", "0.5", "M", "train"]]
    with mixed.open("w") as file:
        csv.writer(file).writerows([line[:-1] for line in lines[:4]] + new)
    with pytest.raises(RunError, match=r"and 2 of the 5 cases were training or validation cases of 'south'"):
        predict.predict(done, mixed, tmp_path / "out", name="north", guarantee="set")
    assert not list((tmp_path / "out").iterdir()), "predictions without a guarantee's right stayed"
    # The least of all hospitals' thresholds holds at each of them.
    out = predict.predict(done, mixed, tmp_path / "each", name=EVERY_SITE, guarantee="set")
    said = (out / "guarantee.txt").read_text()
    assert "2 of the 5 cases trained the model or chose this threshold, as cases of south" in said


def test_of_patients_that_nobody_knows_it_is_said(done: RunFolder, tmp_path: Path) -> None:
    new = table(tmp_path / "elsewhere.csv", 9, target=False)
    out = predict.predict(done, new, tmp_path / "out", name="north", guarantee="set")
    said = (out / "guarantee.txt").read_text()
    assert "None of the 9 cases is known to this run: that they are patients of north is the word of" in said
    own = predict.predict(
        done, shutil.copy(done.path.parent / "north.csv", tmp_path), tmp_path / "own", name="north",
        guarantee="set",
    )  # fmt: skip
    assert "16 of the 24 cases trained" in (own / "guarantee.txt").read_text()


def test_images_are_known_by_their_voxels(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    images = [np.full((1, 2, 2, 2), value, np.float32) for value in (1.0, 2.0, 3.0)]
    contents = [image_digest(image) for image in images]
    assert "this run folder knows no case" in check_whose(folder, contents, "north")
    write_trained(folder.trained, {"north": {"val": contents[:1]}, "south": {"train": contents[1:2]}})
    assert "1 of the 2 cases" in check_whose(folder, [contents[0], contents[2]], "north")
    with pytest.raises(RunError, match="give its own folder, or --name south if it has one"):
        check_whose(folder, contents, "north")


def test_the_site_files_name_and_the_given_one_must_agree() -> None:
    assert guaranteed_name("evaluated", "north") == "north" == guaranteed_name("north", "")
    assert guaranteed_name(EVERY_SITE, "north") == EVERY_SITE
    with pytest.raises(RunError, match="--name is 'south', and the site file is of 'north'"):
        guaranteed_name("south", "north")
