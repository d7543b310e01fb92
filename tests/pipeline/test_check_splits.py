"""`medfed check` says the same twice, and what training in one process will use."""

from __future__ import annotations

import pytest

from medfed.data.splits import folder_secret, simulated_secret, site_name
from medfed.pipeline.check import check
from medfed.pipeline.drafting import parse_sites
from medfed.pipeline.factory import hospital_of
from medfed.study.reading import read_study

STUDY = """\
name: risk
seed: {seed}
sites: {{north: north.csv, south: south.csv}}
data: {{kind: table, features: [a], target: y}}
task: {{kind: tabular, classes: ["no", "yes"]}}
network: {{kind: fully_connected, hidden: [4]}}
train: {{rounds: 1, batch: 4}}
"""


@pytest.fixture
def place(tmp_path):
    for site in ("north", "south"):
        lines = [f"{site}{number},{number / 7:.3f},{number % 2}" for number in range(40)]
        (tmp_path / f"{site}.csv").write_text("\n".join(["patient,a,y", *lines]) + "\n")
    for seed in (0, 3):
        (tmp_path / f"seed{seed}.yaml").write_text(STUDY.format(seed=seed))
    return tmp_path


def checked(*arguments):
    documents = []
    check(*arguments, answer=lambda document: documents.append(document) or True, page=None)
    return documents[0]


def test_the_same_answer_twice(place):
    for study in (None, place / "seed3.yaml"):
        first, second = (checked(place / "north.csv", study) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("seed", [0, 3])
def test_the_splits_of_check_are_those_of_training(place, seed):
    study = read_study(place / f"seed{seed}.yaml")
    data = hospital_of(study, "north", str(place / "north.csv")).data
    result = checked(place / "north.csv", place / f"seed{seed}.yaml")
    trained = ", ".join(f"{len(data.cases(split))} {split}" for split in ("test", "train", "val"))
    assert result["facts"]["splits"] == trained == "6 test, 28 train, 6 val"


def test_a_folder_without_a_study_is_the_site_that_new_names(place):
    (site,) = parse_sites([str(place / "north.csv")])
    assert site == site_name(place / "north.csv") == "north"
    assert folder_secret(place / "north.csv") == simulated_secret(0, "north")
    assert folder_secret(place / "North Wing") == simulated_secret(0, "north-wing")
