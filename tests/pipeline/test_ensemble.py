"""The mean of the folds' models as a run: what it predicts, on whom, and when there is none."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from medfed.data.splits import Fold
from medfed.evaluation.rows import read_cases
from medfed.pipeline.component_gains import with_rules
from medfed.pipeline.create_run import write_study
from medfed.pipeline.ensemble import ensemble_run, no_mean, removed_by_all
from medfed.pipeline.factory import hospital_of, module_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import RoundLine, encode_rounds, read_rounds
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.weights import weights_of

from .two_tables import STUDY

# Weight and bias of each fold's model, by hand: the mean of their chances is not the chance of their mean.
LINES = [(4.0, 1.0), (-1.0, 0.5), (0.0, -3.0)]
# Patients by hospital: number and split. East's are all of the folds; west took no part.
PATIENTS = {
    "north": [(-1.0, ""), (1.0, ""), (0.5, ""), (2.0, "test"), (-2.0, "test")],
    "east": [(-1.0, ""), (1.0, ""), (0.3, "")],
    "west": [(0.25, ""), (-0.75, "test")],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("ensemble")
    for site, patients in PATIENTS.items():
        lines = [f"{site}{n},{x},{int(x > 0)},{split}" for n, (x, split) in enumerate(patients)]
        (folder / f"{site}.csv").write_text("\n".join(["patient,x,ill,split", *lines]) + "\n")
    sites = "sites: {north: north.csv, east: east.csv}\nheld_out: {west: west.csv}\n"
    (folder / "study.yaml").write_text(STUDY[: STUDY.index("sites:")] + sites)
    return read_study(folder / "study.yaml")


def fold_of(study: Study, number: int, path: Path) -> RunFolder:
    """Return a fold's run folder that holds a model of this line, with which nobody trained."""
    folder = RunFolder(path / f"fold-{number}")
    folder.path.mkdir(parents=True)
    write_study(folder, study.in_fold(Fold(number=number, of=len(LINES))))
    names = list(weights_of(module_of(study)))
    weight, bias = LINES[number - 1]
    tensors = {name: torch.tensor([bias] if "bias" in name else [[weight]]) for name in names}
    save_checkpoint(folder.checkpoint("federated"), tensors, study.train.rounds)
    folder.rounds.write_bytes(encode_rounds([RoundLine(one, "north", status="merged") for one in (1, 2)]))
    return folder


@pytest.fixture(scope="module")
def folds(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    path = tmp_path_factory.mktemp("folds")
    return [fold_of(study, number, path) for number in (1, 2, 3)]


class Told(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def log(self, text: str) -> None:
        self.texts.append(text)


def test_it_predicts_the_mean_chance_and_is_measured_on_nobody_of_a_fold(
    study: Study, folds: list[RunFolder], tmp_path: Path
) -> None:
    path = tmp_path / "ensemble"
    path.mkdir()
    (path / "old.txt").write_text("of models that have gone on")
    assert ensemble_run(study, folds, path, Progress()) == (["north", "west"], "")
    assert not (path / "old.txt").exists()
    rows = [row for row in read_cases(RunFolder(path).cases, model="federated") if row.structure == "ill"]
    found = {(row.site, row.case): row.value for row in rows if row.split == "test"}
    expected = {}
    for site, where in {**study.sites, **study.held_out}.items():
        data = hospital_of(study, site, str(where)).data
        numbers = dict(
            zip((one.token for one in data.rows.index.cases), data.rows.numbers[:, 0], strict=True)
        )
        for token, x in numbers.items():
            if site == "west" or float(x) in (2.0, -2.0):
                expected[site, token] = pytest.approx(
                    np.mean([1 / (1 + np.exp(-(w * x + b))) for w, b in LINES]), abs=1e-6
                )
    assert len(expected) == 4
    assert found == expected
    assert [line.round for line in read_rounds(RunFolder(path).rounds)] == [1, 2, 3, 4, 5, 6]


def test_there_is_no_mean_of_models_whose_layers_stay_in_the_hospitals(
    study: Study, folds: list[RunFolder], tmp_path: Path
) -> None:
    own = msgspec.structs.replace(study, train=msgspec.structs.replace(study.train, keep_local=("network",)))
    told, path = Told(), tmp_path / "ensemble"
    path.mkdir()
    measured, why = ensemble_run(own, folds, path, told)
    assert (measured, why) == ([], no_mean(own, folds))
    assert why.startswith("layers stay in the hospitals (keep_local)")
    assert told.texts == [f"no mean of the folds' models: {why}"]
    assert not path.exists()  # no mean of earlier models stays behind


def test_there_is_no_mean_of_models_that_see_other_images(
    study: Study, folds: list[RunFolder], tmp_path: Path
) -> None:
    assert no_mean(study, folds) == ""  # the fold's number alone differs
    standardised = msgspec.structs.replace(study.data, standardise="site")
    other = fold_of(msgspec.structs.replace(study, data=standardised), 2, tmp_path)
    assert "each fold planned its data settings (data.plan)" in no_mean(study, [folds[0], other])


def test_components_are_removed_that_every_fold_chose_to_remove(tiny):
    study = read_study(tiny / "tiny.yaml", ["task.classes=[background, a, b, c]"])
    folds = [{"a": 0.1, "b": "largest", "c": 0.3}, {"a": 0.3, "b": "largest"}]
    both = removed_by_all([with_rules(study, one) for one in folds])
    assert both.task.postprocess == {"b": "largest"}
    assert removed_by_all([study, study]) == study
