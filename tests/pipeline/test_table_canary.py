"""Names, ids and dates in a table's cells, headings and file names are in nothing that a command writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from medfed.cli import main

MARK = "Qz7CANARYx9"
# Dates of birth and numbers of patients that nothing else contains by chance.
DAY, NUMBER = "1941-07-2", "73914"
HEADING = f"mrn,{MARK}_key,last name,date_of_birth,note,seen,age,sex,ward,disease"


def write_table(path: Path, patients: int = 60) -> Path:
    rows = []
    for n in range(patients):
        who = f"{MARK}{n}"
        for visit in range(2):
            rows.append(
                f"{NUMBER}{n:02},{who}-{visit},{who},{DAY}{n % 10},{who} was seen,{DAY}{visit},"
                f"{40 + n * 7 % 31},{'FM'[n % 2]},{MARK if n == 3 else 'east'},{n % 3 % 2}"
            )
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([HEADING, *rows]) + "\n", encoding="utf-8")
    return path


def assert_clean(what: str, text: str) -> None:
    for mark in (MARK.lower(), DAY, NUMBER):
        assert mark not in text.lower(), f"{what} holds {mark}"


def test_nothing_of_a_patient_leaves_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {site: write_table(tmp_path / f"{MARK}{site}" / f"{MARK}.csv") for site in ("north", "south")}
    run, study, out = CliRunner(), tmp_path / "study.yaml", tmp_path / "run"
    sites = [f"{site}={path}" for site, path in tables.items()]
    new = run.invoke(main, ["new", str(study), *sites, "--target", "disease"])
    assert new.exit_code == 0, new.output
    assert_clean("what `new` prints", new.output)
    text = study.read_text()
    # The study of a simulation names the tables' files, and nothing else of them.
    bare = re.sub(r"(?m)^  (north|south): .*$", "", text)
    assert_clean("the study", bare)
    assert "features: [age, sex]" in bare
    study.write_text(text.replace("rounds: 20", "rounds: 1").replace("hidden: [16]", "hidden: []"))
    for arguments in ([], ["--study", str(study)], ["--json"], ["--study", str(study), "--json"]):
        checked = run.invoke(main, ["check", str(tables["north"]), *arguments])
        assert checked.exit_code in (0, 1), checked.output
        assert_clean("what `check` prints", checked.output)
    trained = run.invoke(main, ["train", str(study), "--out", str(out)])
    assert trained.exit_code == 0, trained.output
    assert_clean("what `train` prints", trained.output)
    assert "rows of one patient are kept in one split" in trained.output
    for path in out.rglob("*"):
        if path.is_file() and path.name != "study.yaml":
            assert_clean(path.name, path.read_bytes().decode("latin-1"))
    assert_clean("study.yaml", re.sub(r"(?m)^  (north|south): .*$", "", (out / "study.yaml").read_text()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[1:],
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines, f"{MARK},{MARK}"],
        lambda lines: [lines[0].replace("age", "sex"), *lines[1:]],
        lambda lines: [*lines, lines[1].replace(",0", f",{MARK}")],
    ],
)
def test_nothing_of_a_patient_is_in_a_refusal(
    spoil: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table, run, study = write_table(tmp_path / MARK / f"{MARK}.csv"), CliRunner(), tmp_path / "study.yaml"
    assert run.invoke(main, ["new", str(study), f"north={table}", "--target", "disease"]).exit_code == 0
    table.write_text("\n".join(spoil(table.read_text().splitlines())) + "\n")  # type: ignore[operator]
    for arguments in (
        ["check", str(table)],
        ["check", str(table), "--study", str(study)],
        ["train", str(study), "--out", str(tmp_path / "run")],
        ["new", str(tmp_path / "other.yaml"), f"north={table}", "--target", "disease"],
    ):
        result = run.invoke(main, arguments)
        assert_clean(f"what `{arguments[0]}` prints", result.output)
        if arguments[0] == "train":
            assert result.exit_code != 0
