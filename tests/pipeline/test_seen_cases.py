"""Patients who trained a model are recognised under any name, and are not measured as unseen ones."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from medfed.data.screening import Screening, screen_cases
from medfed.errors import DataError
from medfed.pipeline.evaluate import evaluate
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.seen_cases import (
    _by_chance,
    all_seen,
    patients_seen,
    record_trained,
    without_seen,
)
from medfed.pipeline.train import train
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import encode_rounds, read_rounds
from medfed.runs.trained import read_trained, write_trained
from medfed.study.reading import read_study

STUDY = """\
name: risk
sites: {{north: {place}/north.csv, south: {place}/south.csv}}
held_out: {{west: {place}/west.csv}}
data: {{kind: table, features: [a, b], target: y, fractions: [0.5, 0.25, 0.25]}}
task: {{kind: tabular, classes: ["no", "yes"]}}
network: {{kind: fully_connected, hidden: [4]}}
train: {{rounds: 1, batch: 4}}
evaluation: {{smallest_group: 1, local_models: false, pooled_model: false, robustness: false}}
"""


def table(path, patients, seed):
    generator = np.random.default_rng(seed)
    lines = [
        f"{who},{generator.normal():.6f},{generator.normal():.6f},{place % 2}"
        for place, who in enumerate(patients)
    ]
    path.write_text("patient,a,b,y\n" + "\n".join(lines) + "\n")
    return lines


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two hospitals of 24 patients, and one of whose 6 patients 2 are north's."""
    place = tmp_path_factory.mktemp("seen")
    north = table(place / "north.csv", [f"n{i}" for i in range(24)], 0)
    table(place / "south.csv", [f"s{i}" for i in range(24)], 1)
    west = table(place / "west.csv", [f"w{i}" for i in range(4)], 2)
    (place / "west.csv").write_text("\n".join(["patient,a,b,y", *west, *north[:2]]) + "\n")
    (place / "study.yaml").write_text(STUDY.format(place=place))
    return place


@pytest.fixture(scope="module")
def done(place):
    return train(place / "study.yaml", out=place / "run")


def split_of_north(place):
    study = read_study(place / "study.yaml")
    data = hospital_of(study, "north", str(place / "north.csv")).data
    return {case.patient: case.split for split in ("train", "val", "test") for case in data.cases(split)}


def measured(run, site):
    lines = [json.loads(line) for line in run.cases.read_text().splitlines()]
    return {line["patient"] for line in lines if line["site"] == site}


def test_a_training_hospital_under_another_name_is_measured_on_its_unseen_patients_alone(done, place):
    tested = sum(split == "test" for split in split_of_north(place).values())
    evaluate(done, place / "north.csv", name="another", all_cases=True)
    assert len(measured(done, "another")) == tested == 6
    facts = done.read_facts()
    assert facts.seen["another"] == 18
    assert "18 patients are not measured" in facts.warnings["another"][0]
    report = done.report.read_text()
    assert "18 patients are not measured" in report


def test_a_held_out_folder_is_searched_for_patients_who_trained(done, place):
    seen = sum(split_of_north(place)[who] != "test" for who in ("n0", "n1"))
    assert seen > 0
    assert len(measured(done, "west")) == 6 - seen
    assert done.read_facts().seen["west"] == seen


def test_a_folder_of_nobody_else_is_refused(done, place):
    north = (place / "north.csv").read_text().splitlines()
    split = split_of_north(place)
    kept = [line for line in north if split.get(line.split(",")[0]) != "test"]
    (place / "trained.csv").write_text("\n".join(kept) + "\n")
    with pytest.raises(DataError, match="hospital 'again': all 18 cases are of patients who trained"):
        evaluate(done, place / "trained.csv", name="again", all_cases=True)


def test_a_run_that_starts_from_another_knows_its_cases(done, place, tmp_path):
    study = read_study(place / "study.yaml")
    hospital = hospital_of(study, "later", str(place / "north.csv"))
    start = str(done.checkpoint("federated"))
    marked, said = without_seen(RunFolder(tmp_path), hospital, trains=False, start=start)
    assert patients_seen(marked) == 18
    assert said.startswith("18 patients are not measured")
    assert "all 24 cases" in all_seen(marked, 24)


def test_where_no_digests_are_it_is_said_that_nobody_checked(place, tmp_path):
    study = read_study(place / "study.yaml")
    hospital = hospital_of(study, "later", str(place / "north.csv"))
    marked, said = without_seen(RunFolder(tmp_path), hospital, trains=False)
    assert marked is hospital
    assert "could not be checked" in said


def test_digests_of_two_runs_cannot_be_compared_and_hold_no_content(done, place, tmp_path):
    study = read_study(place / "study.yaml")
    north = hospital_of(study, "north", str(place / "north.csv"))
    other = record_trained(RunFolder(tmp_path), {"north": north})
    one = read_trained(done.trained)
    assert one.key != other.key
    assert len(other.sites["north"]["train"]) == 12
    assert not set(one.sites["north"]["train"]) & set(other.sites["north"]["train"])
    assert "n0" not in done.trained.read_text()
    # A resumed run adds to what it knows.
    again = write_trained(tmp_path / "trained.json", {"north": {"train": [b"new"]}})
    assert again.key == other.key
    assert len(again.sites["north"]["train"]) == 13


def test_an_image_is_the_same_in_the_cache_and_in_memory():
    image = np.random.default_rng(0).random((1, 3, 4, 5), dtype=np.float32)
    digests = [
        screen_cases([None], lambda case, array=array: array).digests[0][1]
        for array in (image, image.astype(np.float16), image + 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert Screening().digests == ()


def test_a_patient_whose_outcome_was_changed_is_recognised(done, place):
    """All else being equal, the patient is the same: 18 of 24 trained, whatever is predicted."""
    north = (place / "north.csv").read_text().splitlines()
    other = [line[:-1] + str(1 - int(line[-1])) for line in north[1:]]
    (place / "other.csv").write_text("\n".join([north[0], *other]) + "\n")
    evaluate(done, place / "other.csv", name="other", all_cases=True)
    assert len(measured(done, "other")) == 6
    assert done.read_facts().seen["other"] == 18


def test_rows_that_trained_under_other_numbers_are_left_out(done, place):
    north = (place / "north.csv").read_text().splitlines()
    (place / "renamed.csv").write_text("\n".join([north[0], *(f"x{line}" for line in north[1:])]) + "\n")
    evaluate(done, place / "renamed.csv", name="renamed", all_cases=True)
    assert len(measured(done, "renamed")) == 6
    facts = done.read_facts()
    assert facts.seen["renamed"] == 18
    (said,) = facts.warnings["renamed"]
    assert said.startswith("18 patients are not measured")
    assert said.endswith(
        "18 rows equal one that trained, in every feature and in what is predicted, under another patient's "
        "number, which is more than chance explains"
    )
    assert "18 rows equal one that trained" in done.report.read_text()
    # Two rows alone are measured: patients may be alike.
    (place / "renamed.csv").write_text("\n".join([north[0], *(f"x{line}" for line in north[1:3])]) + "\n")
    evaluate(done, place / "renamed.csv", name="renamed", all_cases=True)
    assert "rows equal" not in str(done.read_facts().warnings.get("renamed"))


def test_as_many_rows_may_be_alike_as_chance_explains():
    """Of 10 rows 2 pairs are equal, 4 of 90 ordered pairs; 9 trained rows: 10 x 9 x 4 / 90 = 4, thrice."""
    rows = [b"a", b"a", b"b", b"b", *(bytes([number]) for number in range(6))]
    assert _by_chance(rows, 9) == pytest.approx(12)
    assert _by_chance([b"a", b"b"], 100) == 2


def test_patients_of_a_hospital_that_was_never_merged_trained_another_model(place, tmp_path):
    done = train(place / "study.yaml", out=tmp_path / "run")
    done.audit.write_bytes(b"")
    merged = [one for one in read_rounds(done.rounds) if one.site == "south"]
    refused = [msgspec.structs.replace(one, site="north", status="refused") for one in merged]
    done.rounds.write_bytes(encode_rounds([*merged, *refused]))
    evaluate(done, place / "north.csv", name="another", all_cases=True)
    (said,) = done.read_facts().warnings["another"]
    assert said.startswith("18 patients are not measured")
    assert "(no update of north was merged: patients of that hospital trained or chose other models" in said
    evaluate(done, place / "south.csv", name="other", all_cases=True)
    assert "no update" not in done.read_facts().warnings["other"][0]
