"""`medfed train --folds`: every patient by a model that did not see them, the folds' mean, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.data.splits import Fold
from medfed.errors import RunError, StudyError
from medfed.evaluation.rows import CaseRow, read_cases, read_rows
from medfed.pipeline.cross_validation import cross_validate, held_out_cases, studies_of_folds
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.predict import predict
from medfed.pipeline.train import train
from medfed.registry import kinds
from medfed.runs.checkpoints import load_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import RoundLine, consecutive_rounds, read_rounds
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.study import Study

from .two_tables import EPOCHS, ROUNDS, STUDY, descent, initial

FOLDS = 2
# Patients by hospital, with their number; the class is whether it is above 0. The last of each is given.
NUMBERS = {"north": 7, "south": 9, "west": 3}


def write_study(folder: Path) -> Path:
    for site, count in NUMBERS.items():
        drawn = np.random.default_rng(count).normal(size=count).round(2)
        drawn[:2] = (-1.0, 1.0)
        lines = [
            f"{site}{n},{x},{int(x > 0)},{'test' if n == count - 1 else ''}" for n, x in enumerate(drawn)
        ]
        (folder / f"{site}.csv").write_text("\n".join(["patient,x,ill,split", *lines]) + "\n")
    (folder / "study.yaml").write_text(f"{STUDY}held_out: {{west: west.csv}}\n")
    return folder / "study.yaml"


class Interrupted(Progress):
    """Is interrupted when fold 2 is to have its second round merged."""

    def __init__(self) -> None:
        super().__init__()
        self.fold = ""

    def log(self, text: str) -> None:
        self.fold = text if text.startswith("fold ") else self.fold

    def round(self, report: object) -> None:
        if self.fold == f"fold 2 of {FOLDS}" and report.round == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("folds"))


@pytest.fixture(scope="module")
def study(place: Path) -> Study:
    return read_study(place)


@pytest.fixture(scope="module")
def done(place: Path) -> RunFolder:
    """A cross-validation that was interrupted in its second fold, and resumed."""
    out = place.parent / "out"
    with pytest.raises(KeyboardInterrupt):
        cross_validate(place, FOLDS, out=out, progress=Interrupted())
    first = (out / "fold-1" / "report.html").stat().st_mtime_ns
    assert not (out / "report.html").exists()
    run = cross_validate(place, FOLDS, out=out, resume=True, progress=Progress())
    assert (out / "fold-1" / "report.html").stat().st_mtime_ns == first
    return run


def lines_by_hand(study: Study) -> list[tuple[float, float]]:
    """Return weight and bias of each fold's federated model, by gradient descent in numpy."""
    found = []
    for part in studies_of_folds(study, FOLDS):
        cases: dict[str, list[tuple[float, int]]] = {}
        for site, where in part.sites.items():
            data = hospital_of(part, site, str(where)).data
            trains = data.rows.in_split("train")
            cases[site] = list(zip(data.rows.numbers[trains, 0], data.rows.targets[trains], strict=True))
        line, total = initial(part), sum(map(len, cases.values()))
        for _ in range(ROUNDS):
            own = {site: descent(line, some, EPOCHS) for site, some in cases.items()}
            merged = sum(len(cases[site]) * np.array(own[site]) for site in cases) / total
            line = (float(merged[0]), float(merged[1]))
        found.append(line)
    return found


def chance(line: tuple[float, float], x: float) -> float:
    return float(1 / (1 + np.exp(-(line[0] * x + line[1]))))


def numbers_of(study: Study, site: str, where: str) -> dict[str, float]:
    """Return each patient's number, by the token of the case."""
    rows = hospital_of(study, site, where).data.rows
    return {case.token: float(x) for case, x in zip(rows.index.cases, rows.numbers[:, 0], strict=True)}


def ill(run: RunFolder, model: str = "federated") -> dict[tuple[str, str], CaseRow]:
    rows = read_cases(run.cases, model=model)
    return {(row.site, row.case): row for row in rows if (row.split, row.structure) == ("test", "ill")}


@pytest.mark.slow
def test_each_patient_is_measured_once_by_the_model_that_did_not_see_them(
    done: RunFolder, study: Study
) -> None:
    lines, rows = lines_by_hand(study), ill(done)
    for site, where in study.sites.items():
        numbers = numbers_of(study, site, str(where))
        for number, (part, line) in enumerate(zip(studies_of_folds(study, FOLDS), lines, strict=True), 1):
            for case in hospital_of(part, site, str(where)).data.cases("test"):
                row = rows.pop((site, case.token))
                assert row.value == pytest.approx(chance(line, numbers[case.token]), abs=1e-6)
                assert row.attributes["fold"] == f"{number} of {FOLDS}"
    assert rows == {}  # nobody else: neither the given test patients nor the hospital that took no part
    assert lines[0] != pytest.approx(lines[1], abs=1e-3)


@pytest.mark.slow
def test_the_ensemble_is_the_mean_of_the_folds_and_is_measured_on_nobody_who_trained(
    done: RunFolder, study: Study
) -> None:
    lines, rows = lines_by_hand(study), ill(RunFolder(done.path / "ensemble"))
    places = {**study.sites, **study.held_out}
    assert {site: sum(one == site for one, _ in rows) for site in places} == {
        "north": 1,
        "south": 1,
        "west": 3,
    }
    for (site, token), row in rows.items():
        x = numbers_of(study, site, str(places[site]))[token]
        assert row.value == pytest.approx(np.mean([chance(line, x) for line in lines]), abs=1e-6)


@pytest.mark.slow
def test_the_report_is_over_all_held_out_patients_and_says_so(done: RunFolder) -> None:
    page = done.report.read_text()
    assert f"cross-validated in {FOLDS} folds" in page
    assert "each patient was measured by the model of the fold that held them out" in page
    assert "its own report is of north, south, west" in page
    assert "This is one training" not in page
    (patients,) = (
        row.n
        for row in read_rows(done.rows)
        if (row.site, row.model, row.metric, row.split, row.group)
        == ("all", "federated", "patients", "test", None)
    )
    assert patients == sum(NUMBERS[site] - 1 for site in ("north", "south"))
    assert not [
        row for row in read_cases(done.cases) if row.split == "val"
    ]  # they would choose the threshold
    facts = json.loads(done.facts.read_text())
    assert facts["cases"] == {"north": {"test": 6}, "south": {"test": 8}}
    assert facts["digest"] == study_digest(read_study(done.study, ["evaluation.draws=20"]))


@pytest.mark.slow
def test_rounds_are_numbered_on_over_the_folds(done: RunFolder) -> None:
    lines = read_rounds(done.rounds)
    assert sorted({line.round for line in lines if line.status == "merged"}) != []
    assert sum(line.status == "merged" for line in lines) == FOLDS * ROUNDS * 2
    one, two = RoundLine(1, "a", status="merged"), RoundLine(3, "a", status="reported")
    assert [line.round for line in consecutive_rounds([[one, two], [one]])] == [1, 3, 4]


@pytest.mark.slow
def test_an_interrupted_fold_ends_with_the_weights_of_one_that_was_not(
    done: RunFolder, study: Study, tmp_path: Path
) -> None:
    alone = train(studies_of_folds(study, FOLDS)[1], out=tmp_path / "alone", progress=Progress())
    one, other = (
        load_checkpoint(run.checkpoint("federated")) for run in (RunFolder(done.path / "fold-2"), alone)
    )
    assert {key: value.tolist() for key, value in one.items()} == {
        key: value.tolist() for key, value in other.items()
    }


@pytest.mark.slow
def test_predictions_are_of_every_patient_whatever_fold_the_run_was_of(
    done: RunFolder, study: Study, tmp_path: Path
) -> None:
    data = Path(str(study.held_out["west"]))
    predict(done.path / "ensemble", data, tmp_path / "p")
    predict(done.path / "fold-2", data, tmp_path / "q")
    for name in ("p", "q"):
        assert len((tmp_path / name / "predictions.csv").read_text().splitlines()) == 1 + NUMBERS["west"]
    with pytest.raises(RunError, match="the models of its 2 folds are in fold-1"):
        predict(done.path, data, tmp_path / "r")


def test_a_hospital_that_took_no_part_is_in_no_fold(study: Study) -> None:
    """It has three patients, and none of five folds would have been left of it."""
    part = study.in_fold(Fold(number=1, of=5))
    data = hospital_of(part, "west", str(study.held_out["west"])).data
    assert sum(len(data.cases(split)) for split in ("train", "val", "test")) == NUMBERS["west"]


def test_the_digest_holds_the_fold_and_a_study_without_keeps_its_own(study: Study) -> None:
    digests = {study_digest(part) for part in studies_of_folds(study, 5)}
    assert len({*digests, study_digest(study)}) == 6
    assert "fold" not in msgspec.to_builtins(study)["data"] or study.data.fold is None


def test_what_cannot_be_cross_validated_is_refused(study: Study, place: Path, tmp_path: Path) -> None:
    private = msgspec.structs.replace(study, privacy=kinds("privacy")["secure_sum"]())
    with pytest.raises(StudyError, match=r"each training tells more .* 'secure_sum' counts; in a simulation"):
        studies_of_folds(private, 5)
    with pytest.raises(StudyError, match="one fold already"):
        studies_of_folds(study.in_fold(Fold(number=1, of=5)), 5)
    with pytest.raises(StudyError, match="at least 2 folds"):
        studies_of_folds(study, 1)
    with pytest.raises(StudyError, match="number is 3 of 2 folds"):
        read_study(place, ["data.fold.number=3", "data.fold.of=2"])
    asked = CliRunner().invoke(main, ["train", str(place), "--folds", "2", "--without", "north"])
    assert "train --folds: name a study file, without --site and --without" in asked.output


def test_a_patient_who_was_tested_in_two_folds_is_no_result() -> None:
    def row(patient: str, metric: str = "dice") -> CaseRow:
        return CaseRow(
            model="federated",
            site="north",
            split="test",
            case=patient,
            patient=patient,
            metric=metric,
            value=0.5,
        )

    with pytest.raises(RunError, match="1 patients of north were tested in two folds"):
        held_out_cases([[row("a"), row("b")], [row("a")]], ["north"])
    # A survival at a time of one fold alone is of a part of the patients.
    kept = held_out_cases([[row("a"), row("a", "survival@3")], [row("b"), row("b", "survival@4")]], ["north"])
    assert [(one.patient, one.metric) for one in kept] == [("a", "dice"), ("b", "dice")]


@pytest.mark.slow
def test_another_number_of_folds_does_not_resume(done: RunFolder, place: Path) -> None:
    with pytest.raises(RunError, match="holds a run of study"):
        cross_validate(place, 3, out=done.path, resume=True, progress=Progress())
