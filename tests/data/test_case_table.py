"""The table beside images: which row is whose, the network's inputs by hand, and every refusal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.data.case_table import with_table
from medfed.data.datamodule import SiteDataModule
from medfed.data.index import Index, index_folder
from medfed.data.own_data import OwnData
from medfed.data.preflight.preflight import check
from medfed.data.preflight.report import page
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.settings import CaseTable, Images, Unreadable
from medfed.data.splits import case_token
from medfed.errors import DataError

SECRET = b"a site's secret of some length"
# Stands in every name, path and cell; no message may hold it.
MARK = "Meier"
TABLE = CaseTable(features=("age", "sex"), categorical={"sex": ("F", "M")}, indicate=True)
HEAD = "case,patient,age,sex"


def images(table: CaseTable | None = TABLE, **changes: object) -> Images:
    return Images(spatial_dims=2, spacing_mm="native", patch=(8, 8), augment="none", table=table, **changes)


def folder_of(tmp_path: Path, rows: list[str], heading: str = HEAD, name: str = "clinical.csv") -> Path:
    """Return a folder of five pictures of four patients (a, b, c, d twice), and a table beside them."""
    folder = tmp_path / f"{MARK}_export"
    folder.mkdir()
    cases = ["case,patient,image,target,split"]
    for number, (case, split) in enumerate(
        zip("abcde", ("train", "train", "val", "train", "train"), strict=True)
    ):
        Image.fromarray(np.full((8, 8), 10 * number, np.uint8) + np.eye(8, dtype=np.uint8)).save(
            folder / f"{MARK}_{case}.png"
        )
        patient = "d" if case == "e" else case
        cases.append(f"{MARK}-{case},{MARK}{patient},{MARK}_{case}.png,{number % 2},{split}")
    (folder / "cases.csv").write_text("\n".join(cases) + "\n")
    (folder / name).write_text("\n".join([heading, *rows]) + "\n")
    return folder


def row(case: str, age: object, sex: str, patient: str = "") -> str:
    return f"{MARK}-{case},{MARK}{patient or ('d' if case == 'e' else case)},{age},{sex}"


GOOD = [row("a", 40, "F"), row("b", 60, "M"), row("c", 50, "M"), row("d", "", "F"), row("e", 80, "")]


def indexed(folder: Path, settings: CaseTable = TABLE, own: OwnData | None = None) -> Index:
    return with_table(index_folder(folder, site_secret=SECRET), settings, own)


def opened(folder: Path, settings: Images | None = None, own: OwnData | None = None) -> SiteDataModule:
    return SiteDataModule.open(
        folder, settings or images(), "classify", site_secret=SECRET, classes=2, own=own, batch=5
    )


def token(case: str) -> str:
    return case_token(SECRET, f"{MARK}-{case}")


def refusal(folder: Path, settings: CaseTable = TABLE, own: OwnData | None = None) -> str:
    with pytest.raises(DataError, match=r"\w") as error:
        indexed(folder, settings, own)
    assert MARK not in str(error.value)
    return str(error.value)


def inputs(data: SiteDataModule, split: str) -> dict[str, list[float]]:
    dataset = data.dataset(split)
    return {item["case"]: item["tabular"].tolist() for item in map(dataset.__getitem__, range(len(dataset)))}


def test_a_batch_holds_the_columns_by_hand(tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path, GOOD))
    # Training cases a, b, d, e: ages 40, 60, none, 80. Median 60 fills d: mean 60, deviation sqrt(200).
    assert inputs(data, "train") == {
        token("a"): pytest.approx([-20 / 200**0.5, 0, 1, 0]),
        token("b"): pytest.approx([0, 0, 0, 1]),
        token("d"): pytest.approx([0, 1, 1, 0]),
        token("e"): pytest.approx([20 / 200**0.5, 0, 0, 0]),
    }
    # A case that is only validated on is scaled by the training cases.
    assert inputs(data, "val") == {token("c"): pytest.approx([-10 / 200**0.5, 0, 0, 1])}
    (batch,) = data.val_dataloader()
    assert batch["tabular"].shape == (1, 4)
    assert batch["image"].shape == (1, 1, 8, 8)
    assert TABLE.input_names == ("age", "age is empty", "sex is F", "sex is M")


def test_fixed_scaling_uses_the_studys_numbers(tmp_path: Path) -> None:
    table = CaseTable(features=("age",), standardise="fixed", centre={"age": 50.0}, scale={"age": 10.0})
    data = opened(folder_of(tmp_path, GOOD), images(table))
    assert inputs(data, "val") == {token("c"): [0.0]}
    assert inputs(data, "train")[token("a")] == [-1.0]


def test_one_row_per_patient_serves_all_of_the_patients_cases(tmp_path: Path) -> None:
    rows = [f"{MARK}{patient},{age},F" for patient, age in zip("abcd", (40, 60, 50, 80), strict=True)]
    rows = indexed(folder_of(tmp_path, rows, "patient,age,sex")).rows
    assert rows is not None
    assert {name: rows.numbers[token(name)][0] for name in "abcde"} == dict(
        zip("abcde", (40, 60, 50, 80, 80), strict=True)
    )


def test_subjects_of_a_bids_table_and_usual_headings_are_recognised(tmp_path: Path) -> None:
    rows = [f"sub-{MARK}{patient}\t5{n}\tM" for n, patient in enumerate("abcd")]
    index = indexed(folder_of(tmp_path, rows, "participant_id\tage\tsex", "participants.tsv"))
    assert index.rows is not None
    assert index.rows.numbers[token("e")] == (53.0,)
    assert any("matched by the column with the patients' ids" in note for note in index.rows.notes)


def test_a_row_may_name_the_images_file(tmp_path: Path) -> None:
    rows = [f"{MARK}_a,40,F", f"{MARK}_b.png,60,M", row("c", 50, "M").replace(f"{MARK}c,", "")]
    rows = indexed(folder_of(tmp_path, rows, "case,age,sex")).rows
    assert rows is not None
    assert sorted(rows.numbers) == sorted(map(token, "abc"))


def test_without_another_table_the_columns_of_cases_csv_are_taken(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, GOOD)
    (folder / "clinical.csv").unlink()
    lines = (folder / "cases.csv").read_text().splitlines()
    more = ["age", "40", "60", "50", "70", "80"]
    (folder / "cases.csv").write_text("".join(f"{a},{b}\n" for a, b in zip(lines, more, strict=True)))
    rows = indexed(folder, CaseTable(features=("age",))).rows
    assert rows is not None
    assert [rows.numbers[token(name)][0] for name in "abcde"] == [40, 60, 50, 70, 80]


def test_another_hospital_has_its_own_headings_and_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, GOOD, "Fallnummer,Patientin,Alter,sex", "Klinik.csv")
    headings = {"case": "Fallnummer", "patient": "Patientin", "age": "Alter"}
    own = OwnData(str(folder / "Klinik.csv"), headings)
    rows = indexed(folder, own=own).rows
    assert rows is not None
    assert rows.numbers[token("a")] == (40.0,)
    assert "sought in cases.csv, as the folder has none of clinical.csv" in refusal(folder)


def test_the_table_is_no_file_that_no_case_uses(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, GOOD)
    assert index_folder(folder, site_secret=SECRET).left_out == {"table files that no case uses": 1}
    assert indexed(folder).left_out == {}


BAD_ROWS = {
    "no row in the table": (GOOD[1:], "has no row for it"),
    "several rows in the table": ([*GOOD, GOOD[0]], r"2 rows for it, such as 2 and 7; keep the right one"),
    "table row unreadable": (
        [row("a", "old", "F"), *GOOD[1:]],
        r"row 2: column 'age' holds no number; .*data\.table\.missing_values",
    ),
    "table row of another patient": ([row("a", 40, "F", "b"), *GOOD[1:]], "row 2: the row names another"),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_case_without_a_usable_row_is_left_out_counted_and_told(tmp_path: Path, reason: str) -> None:
    rows, words = BAD_ROWS[reason]
    folder = folder_of(tmp_path, rows)
    data = opened(folder)
    screening = data.screen()
    assert [one.reason for one in screening.refused] == [reason]
    with pytest.raises(DataError, match=words) as error:
        data.leave_out(screening, Unreadable(skip=False))
    assert MARK not in str(error.value)
    assert f"case {token('a')}: " in str(error.value)
    data.leave_out(screening, Unreadable(max_share=0.2))
    assert data.left_out == {reason: 1}
    assert data.examples == 3
    # Ages 60, none, 80: median 70, mean 70, deviation sqrt(200 / 3); a's 40 plays no part any more.
    assert inputs(data, "train")[token("b")] == pytest.approx([-10 / (200 / 3) ** 0.5, 0, 0, 1], rel=1e-6)


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_check_tells_what_training_leaves_out(tmp_path: Path, reason: str) -> None:
    rows, words = BAD_ROWS[reason]
    folder = folder_of(tmp_path, rows)
    requirements = StudyRequirements("s", images(), "classify", ("no", "yes"))
    bears = Unreadable(max_share=0.2)
    preflight = check(folder, site_secret=SECRET, requirements=requirements, bears=bears, processes=1)
    (problem,) = (one for one in preflight.problems if one.code == "table_row")
    assert re.search(words, problem.cases[0][1])
    assert problem.cases[0][0].startswith("row 2 (")
    assert preflight.can_take_part
    assert preflight.facts["table"] == {"columns": ["age", "sex"], "with a row": 4, reason: 1}
    text = page(preflight)
    assert "Cases without a row that can be used" in text
    assert MARK not in text
    refused = check(
        folder, site_secret=SECRET, requirements=requirements, bears=Unreadable(skip=False), processes=1
    )
    assert not refused.can_take_part


def test_a_row_without_a_case_is_counted(tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path, [*GOOD, row("x", 1, "F"), row("y", 1, "F")]))
    assert any("2 rows name no case of the folder and are left out" in note for note in data.notes)


def test_a_case_with_an_empty_number_is_dropped_if_the_study_says_so(tmp_path: Path) -> None:
    table = CaseTable(features=("age",), missing="drop")
    index = indexed(folder_of(tmp_path, GOOD), table)
    assert [case.token for case in index.cases] == [token(name) for name in "abce"]
    assert index.rows is not None
    assert any(note.startswith("1 cases have an empty number") for note in index.rows.notes)


def test_a_table_that_names_no_case_is_refused(tmp_path: Path) -> None:
    rows = [f"{n},Z{n},4{n},F" for n in range(1, 4)]
    assert "3 rows, and none names one of the folder's 5 cases" in refusal(folder_of(tmp_path, rows))


def test_a_table_that_cannot_be_read_is_refused_by_check_and_training_alike(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [line.rpartition(",")[0] for line in GOOD], "case,patient,age")
    words = refusal(folder)
    assert "the site's table beside the images has no column 'sex'" in words
    requirements = StudyRequirements("s", images(), "classify", ("no", "yes"))
    preflight = check(folder, site_secret=SECRET, requirements=requirements, processes=1)
    assert not preflight.can_take_part
    assert words in page(preflight).replace("&#39;", "'")


@pytest.mark.parametrize(
    ("heading", "settings", "words"),
    [
        ("bed,ward,age,sex", TABLE, "has no column that names the case or the patient"),
        ("mrn,subject_id,age,sex", TABLE, "has 2 columns with patients' ids"),
        (HEAD, CaseTable(features=("age",), case="accession"), r"no column 'accession' \(data.table.case\)"),
        ("bed,patient,age,sex", CaseTable(features=("age",), patient="mrn"), r"no column 'mrn'"),
        (HEAD, CaseTable(features=("age",), file="lab.csv"), r"no file 'lab.csv' \(data.table.file\)"),
    ],
)
def test_what_names_a_row_is_not_guessed(
    tmp_path: Path, heading: str, settings: CaseTable, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        indexed(folder_of(tmp_path, GOOD, heading), settings)


def test_two_tables_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, GOOD)
    (folder / "participants.tsv").write_text("case\tage\n")
    assert "the folder holds clinical.csv and participants.tsv" in refusal(folder)


def test_a_site_file_that_names_no_file_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, GOOD)
    assert "correct `table` in the site file" in refusal(folder, own=OwnData(str(folder / MARK)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"features": ()}, "data.table: features is empty"),
        ({"features": ("mrn", "age")}, "data.table: features lists 'mrn', which says whose a row is"),
        ({"features": ("case",)}, "data.table: features lists the column that names the case"),
        (
            {"features": ("age",), "standardise": "fixed"},
            "data.table: standardise is 'fixed' and 'age' has no",
        ),
        ({"features": ("age",), "categorical": {"sex": ("F",)}}, "data.table: categorical names 'sex'"),
        (
            {"features": ("sex",), "categorical": {"sex": ()}},
            "data.table: no column has a word to learn from",
        ),
        ({"features": ("age",), "file": "../x.csv"}, "data.table: file is not the name of a file"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        CaseTable(**settings)  # type: ignore[arg-type]


def test_columns_that_look_like_ids_are_told_with_the_key_of_the_table(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row(case, 0, "F") for case in "abcde"])
    (line,) = opened(folder).warnings
    assert "column 'age' has one value in all rows" in line
    assert "data.table.missing_values.age" in line


def test_the_patient_of_a_row_may_be_its_picture_s_name_where_nothing_else_names_patients(
    tmp_path: Path,
) -> None:
    folder = tmp_path / f"{MARK}_export"
    for number, name in enumerate("abcdefgh"):
        picture = folder / ("healthy" if number % 2 else "tumour") / f"{MARK}{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * number, np.uint8)).save(picture)
    rows = [f"{MARK}{name},{40 + number},F" for number, name in enumerate("abcdefgh")]
    (folder / "clinical.csv").write_text("\n".join(["mrn,age,sex", *rows]) + "\n")
    index = indexed(folder)
    assert index.rows is not None
    by_file = {Path(str(case.image[0])).stem: index.rows.numbers[case.token] for case in index.cases}
    assert by_file == {f"{MARK}{name}": (40.0 + number,) for number, name in enumerate("abcdefgh")}


def test_a_row_finds_its_patient_however_its_id_was_typed(tmp_path: Path) -> None:
    rows = [f"{MARK}\u200b{one},{age},F" for one, age in (("a", 40), ("b", 60), ("c", 50), ("d", 70))]
    indexed_rows = indexed(folder_of(tmp_path, rows, "patient,age,sex")).rows
    assert {name: numbers[0] for name, numbers in indexed_rows.numbers.items()} == {
        token(case): age for case, age in zip("abcde", (40, 60, 50, 70, 70), strict=True)
    }
