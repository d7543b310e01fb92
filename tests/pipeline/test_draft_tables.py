"""The draft of a study of tables: features, categories, codes, and words that are not copied into a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.site_table import open_table
from medfed.errors import DataError, StudyError
from medfed.pipeline._draft_tables import (
    MAX_CATEGORIES,
    MIN_PATIENTS,
    DraftColumns,
    TargetColumns,
    add_column,
    draft_tables,
    table_file,
)
from medfed.study.reading import parse_study

ROWS = 2 * MIN_PATIENTS


def table(folder: Path, site: str = "north", **columns: list[object]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (folder / f"{site}.csv").write_text("\n".join(lines) + "\n")
    return folder / f"{site}.csv"


def added(folder: Path, cells: list[object], name: str = "x") -> DraftColumns:
    """Return what a column of one hospital, with a patient per row, adds to a draft."""
    path = table(folder, **{name: cells, "filler": range(len(cells))})
    columns = DraftColumns()
    patients = {"north": [str(row) for row in range(len(cells))]}
    add_column(name, {"north": open_table(path)}, patients, columns)
    return columns


def test_words_of_enough_patients_are_a_category_and_rarer_ones_are_not_copied(tmp_path: Path) -> None:
    columns = added(tmp_path, ["b", "a"] * MIN_PATIENTS)
    assert (columns.features, columns.categories, columns.warnings) == (["x"], {"x": ["a", "b"]}, [])
    columns = added(tmp_path, ["b", "a"] * (MIN_PATIENTS - 1) + ["b", "Meier"])
    assert (columns.features, columns.categories) == ([], {})
    (warning,) = columns.warnings
    assert warning.startswith("column 'x' was left out: 2 of its 3 words are held by fewer than 10 patients")
    assert "Meier" not in warning


def test_a_column_of_more_words_than_a_category_has_is_left_out(tmp_path: Path) -> None:
    words = [f"w{row % (MAX_CATEGORIES + 1)}" for row in range(200)]
    assert added(tmp_path, words).warnings == ["column 'x' holds 13 different words and was left out"]
    assert added(tmp_path, [""] * ROWS).warnings == ["column 'x' is empty and was left out"]


def test_a_word_among_numbers_is_told_by_its_row(tmp_path: Path) -> None:
    cells: list[object] = [50 + row for row in range(30)]
    cells[7] = "Meier"  # the heading is row 1
    (warning,) = added(tmp_path, cells).warnings
    assert warning.startswith(
        "column 'x' was left out: 1 of its 30 filled cells are no numbers, the first of them in row 9 of "
        "north's table; correct them, say in data.missing_values.x what stands for 'not measured'"
    )
    assert "Meier" not in warning
    # Also where few different values would be a category; two words of enough patients still are.
    few = added(tmp_path, [1, 2] * ROWS + ["Meier"]).warnings
    assert few[0].startswith(f"column 'x' was left out: 1 of its {2 * ROWS + 1} filled cells are no numbers")
    assert added(tmp_path, [1, "2+"] * ROWS).categories == {"x": ["1", "2+"]}


def test_a_word_among_classes_is_told_by_its_row(tmp_path: Path) -> None:
    paths = {"north": table(tmp_path, age=list(range(40, 60)), y=[0, 1] * 5 + ["Meier"] + [1] * 9)}
    with pytest.raises(
        StudyError, match=r"\(1 cells hold something else, the first in row 12 of north's"
    ) as one:
        draft_tables(paths, TargetColumns(target="y"))
    assert "Meier" not in str(one.value)


def test_numbers_that_look_like_codes_are_categories_if_enough_patients_have_each(tmp_path: Path) -> None:
    columns = added(tmp_path, [1, 2, 4] * MIN_PATIENTS, "pain_type")
    assert columns.categories == {"pain_type": ["1", "2", "4"]}
    assert columns.codes == {"pain_type"}
    columns = added(tmp_path, [1, 2, 4] * (MIN_PATIENTS - 1), "pain_type")
    assert (columns.features, columns.categories) == (["pain_type"], {})
    assert "holds 3 whole numbers and was taken for an amount" in columns.warnings[0]
    assert added(tmp_path, [0, 1, 2] * MIN_PATIENTS, "vessels").categories == {}


def test_a_column_that_says_whose_a_row_is_is_no_feature(tmp_path: Path) -> None:
    columns = added(tmp_path, [f"M{row}" for row in range(ROWS)], "mrn")
    assert columns.features == []
    assert columns.warnings[0].startswith("column 'mrn' was left out")


def test_the_draft_is_of_the_columns_that_all_hospitals_have(tmp_path: Path) -> None:
    numbers = [40 + row % 7 for row in range(ROWS)]
    target = [row % 2 for row in range(ROWS)]
    paths = {
        "north": table(tmp_path, "north", age=numbers, sex=["F", "M"] * MIN_PATIENTS, bp=numbers, ill=target),
        "south": table(tmp_path, "south", ill=target, age=numbers, sex=["M", "F"] * MIN_PATIENTS),
    }
    draft = draft_tables(paths, TargetColumns(target="ill"))
    study = parse_study("name: s\nsites: {north: n, south: s}\n" + draft.text)
    assert study.task.classes == ("class0", "class1")
    assert (study.data.target, study.data.features) == ("ill", ("age", "sex"))
    assert study.data.categorical == {"sex": ("F", "M")}
    assert "not at every hospital, and left out: bp" in draft.warnings
    assert draft.summaries[1] == f"south: a table, {ROWS} rows of {ROWS} patients"


def test_time_and_event_make_a_survival_study(tmp_path: Path) -> None:
    numbers = [40 + row % 7 for row in range(ROWS)]
    path = table(tmp_path, age=numbers, days=numbers, died=[row % 2 for row in range(ROWS)])
    draft = draft_tables({"north": path}, TargetColumns(time="days", event="died"))
    study = parse_study("name: s\nsites: {north: n}\n" + draft.text)
    assert (study.data.time, study.data.event, study.data.features) == ("days", "died", ("age",))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (TargetColumns(), "it is not clear what to learn from a table: give --target COLUMN"),
        (TargetColumns(time="age"), "it is not clear what to learn from a table"),
        (TargetColumns(target="ill", time="age", event="x"), "it is not clear what to learn from a table"),
        (TargetColumns(target="il"), "north: no column 'il'; all hospitals have age, ill"),
        (TargetColumns(time="age", event="AGE"), "'age' is given twice as a column to predict"),
        (TargetColumns(target="age"), "column 'age' does not hold classes 0, 1, ...: it has 7 different"),
    ],
)
def test_what_to_predict_must_be_given_and_be_there(
    tmp_path: Path, answers: TargetColumns, words: str
) -> None:
    path = table(tmp_path, age=[40.5 + row % 7 for row in range(ROWS)], ill=[row % 2 for row in range(ROWS)])
    with pytest.raises(StudyError, match=rf"^{words}"):
        draft_tables({"north": path}, answers)


def test_nothing_to_learn_from_and_an_empty_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"^no column is left to learn from: column 'empty' is empty"):
        draft_tables({"north": table(tmp_path, ill=[0, 1], empty=["", ""])}, TargetColumns(target="ill"))
    with pytest.raises(DataError, match=r"^north: its table has no row below the column names"):
        draft_tables({"north": table(tmp_path, ill=[], age=[])}, TargetColumns(target="ill"))


def test_a_folder_with_one_table_is_a_table(tmp_path: Path) -> None:
    path = table(tmp_path / "one", age=[1])
    assert table_file(path) == table_file(tmp_path / "one") == path
    (tmp_path / "one" / "image.nii").touch()
    assert table_file(tmp_path / "one") is None
