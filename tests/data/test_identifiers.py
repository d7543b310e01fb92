"""Columns that identify patients are recognised, and measurements are not taken for them."""

from __future__ import annotations

import pytest

from medfed.data.identifiers import is_unmistakable, kind_by_cells, kind_by_heading, shown_heading
from medfed.data.patients import ALL_ALIKE, NO_COLUMN, NOT_STATED, RECOGNISED, patients_of


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("mrn", "patient"),
        ("patient_id", "patient"),
        ("Patient ID", "patient"),
        ("record_id", "patient"),
        ("subject", "patient"),
        ("participant_id", "patient"),
        ("Fallnummer", "row"),
        ("case number", "row"),
        ("accession", "row"),
        ("tumour_bank_id", "row"),
        ("date_of_birth", "birth"),
        ("DOB", "birth"),
        ("last name", "name"),
        ("date_of_surgery", "date"),
        ("acid", None),
        ("lipid", None),
        ("carotid", None),
        ("patient_age", None),
        ("age", None),
        ("sex", None),
        ("subject_weight", None),
        ("n_nodes", None),
    ],
)
def test_a_heading_says_what_its_column_identifies(heading: str, kind: str | None) -> None:
    assert kind_by_heading(heading) == kind


def test_a_study_may_mean_something_else_by_a_plain_word() -> None:
    assert is_unmistakable("MRN")
    assert not is_unmistakable("sample")
    assert not is_unmistakable("tumour_bank_id")


def test_a_heading_that_is_not_of_the_list_is_not_shown() -> None:
    assert shown_heading("Patient ID", 3) == "Patient ID"
    assert shown_heading("meier_id", 3) == "3"


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([f"Doe, Jane {n}" for n in range(20)], "unique"),
        ([str(4_711_000 + 37 * n) for n in range(20)], "unique"),
        ([str(n) for n in range(1, 21)], "unique"),
        ([f"19{n}-02-11" for n in range(40, 60)], "date"),
        ([f"11.02.19{n}" for n in range(40, 60)], "date"),
        ([f"19{n}0211" for n in range(40, 60)], "date"),
        # Sentences, each in four rows.
        ([f"seen in the clinic on day {n // 4}" for n in range(40)], "unique"),
        # Ages, some twice; a laboratory value with decimals; platelets; words of a category; few rows.
        ([str(30 + n * 7 % 41) for n in range(60)], None),
        ([f"{n / 7:.3f}" for n in range(40)], None),
        ([str(120 + 13 * n) for n in range(20)], None),
        (["typical", "none"] * 20, None),
        ([str(n) for n in range(1, 6)], None),
        ([], None),
        (["", "NA"], None),
    ],
)
def test_cells_say_what_their_column_identifies(cells: list[str], kind: str | None) -> None:
    assert kind_by_cells(cells) == kind


LINES = (2, 3, 4, 5)


def test_the_named_column_groups_the_rows() -> None:
    columns = {"patient": ("a", "a", "b", ""), "mrn": ("1", "2", "3", "4")}
    assert patients_of(columns, LINES, "patient") == (["a", "a", "b", "row 5"], (NOT_STATED,))


def test_a_recognised_column_groups_the_rows_and_says_so() -> None:
    columns = {"age": ("1", "1", "1", "1"), "mrn": ("a", "a", "b", "c")}
    assert patients_of(columns, LINES, "patient") == (["a", "a", "b", "c"], (RECOGNISED,))


def test_rows_that_share_any_id_are_of_one_patient() -> None:
    # By hand: rows 1 and 2 share the MRN, rows 2 and 3 the subject; row 4 stands alone.
    columns = {"mrn": ("a", "a", "b", "c"), "subject": ("x", "y", "y", "z")}
    patients, notes = patients_of(columns, LINES, "patient")
    assert patients[0] == patients[1] == patients[2] != patients[3]
    assert "2 columns with patients' ids" in notes[0]
    # The same groups have the same names in every order of the rows.
    turned = {name: cells[::-1] for name, cells in columns.items()}
    assert patients_of(turned, LINES, "patient")[0] == patients[::-1]


def test_an_id_that_all_rows_share_tells_no_patients_apart() -> None:
    patients, notes = patients_of({"subject": ("ANONYMOUS",) * 4}, LINES, "patient")
    assert len(set(patients)) == 4
    assert notes == (ALL_ALIKE,)
    assert patients_of({"age": ("1",) * 4}, LINES, "patient")[1] == (NO_COLUMN,)


def test_an_id_groups_rows_and_a_column_of_cases_and_controls_does_not() -> None:
    assert patients_of({"id": ("7", "7", "8", "9")}, LINES, "patient")[0] == ["7", "7", "8", "9"]
    assert patients_of({"case": ("0", "0", "1", "1")}, LINES, "patient")[1] == (NO_COLUMN,)


@pytest.mark.parametrize("wrote", ["{}.0", "{}.", "{},0", "-{}", "+{}", "{}.00"])
def test_an_id_that_a_spreadsheet_wrote_as_a_quantity_is_an_id(wrote: str) -> None:
    ids = [str(200_000 + 37 * n) for n in range(40)]
    assert kind_by_cells([wrote.format(one) for one in ids]) == "unique"
    assert kind_by_cells([f"{int(one):.5e}" for one in ids]) == "unique"
    days = [f"19{n:02}0703" for n in range(30, 90)]
    assert kind_by_cells([wrote.format(day) for day in days]) == "date"
    amounts = [f"{n / 7:.2f}" for n in range(40)]
    assert kind_by_cells(amounts) is None
