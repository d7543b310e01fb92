"""`medfed new`: the draft is written once, and what a person must check is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.study.reading import read_study

ROWS = [(f"P{n}", n % 7, n % 2) for n in range(40)]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for site in ("north", "south", "west"):
        lines = [f"{site}{patient},{age},{ill}" for patient, age, ill in ROWS]
        (tmp_path / f"{site}.csv").write_text("\n".join(["patient,age,ill", *lines]) + "\n")
    return tmp_path


def new(folder: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["new", str(folder / "ours.yaml"), *words])
    return done.exit_code, done.output


def test_sites_have_their_folders_names_or_those_given(tables: Path) -> None:
    words = [str(tables / "north.csv"), f"klinik={tables / 'south.csv'}", "--target", "ill"]
    code, output = new(tables, *words, "--held-out", str(tables / "west.csv"))
    assert code == 0, output
    assert output.splitlines()[-1] == (
        f"{tables / 'ours.yaml'}: written. Read it, then: medfed train {tables / 'ours.yaml'}"
    )
    study = read_study(tables / "ours.yaml")
    assert (sorted(study.sites), sorted(study.held_out)) == (["klinik", "north"], ["west"])
    assert study.data.target == "ill"
    assert study.data.features == ("age",)


def test_what_would_be_wrong_is_refused_and_writes_nothing(tables: Path) -> None:
    north = str(tables / "north.csv")
    code, output = new(tables, north, "--held-out", north)
    assert (code, output) == (
        1, "medfed: 'north' trains and is held out; a held-out hospital must not train\n"
    )  # fmt: skip
    assert not (tables / "ours.yaml").exists()
    (tables / "ours.yaml").write_text("mine")
    code, output = new(tables, north, "--target", "ill")
    assert code == 1
    assert "the file exists; give another name, or move it away" in output
    assert (tables / "ours.yaml").read_text() == "mine"


def test_what_a_person_should_look_at_is_marked(tables: Path) -> None:
    code, output = new(tables, str(tables / "north.csv"), "--target", "ill")
    assert code == 0, output
    assert "check: column 'patient' was left out, and keeps a patient's rows in one split" in output
