"""Which rows of a table belong to one patient, by the named column or by those that are recognised."""

from __future__ import annotations

from medfed.data.case import Case
from medfed.data.patients import (
    ALL_ALIKE,
    NO_COLUMN,
    NOT_STATED,
    RECOGNISED,
    classes_note,
    patient_columns,
    patients_of,
)

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


def test_the_named_column_is_found_in_any_case_and_comes_before_recognised_ones() -> None:
    columns = {"ward": ("a", "a", "b", "b"), "mrn": ("1", "2", "3", "4")}
    assert patients_of(columns, LINES, "Ward") == (["a", "a", "b", "b"], ())


def test_placeholders_are_no_ids_in_any_column() -> None:
    columns = {"mrn": ("a", "Unknown", "b", ""), "subject": ("x", "x", "NA", "NA")}
    patients, _ = patients_of(columns, LINES, "patient")
    # Rows 2 and 3 share subject x; rows 4 and 5 share nothing.
    assert patients[0] == patients[1]
    assert len(set(patients)) == 3


def test_a_column_of_ids_needs_two_percent_of_the_rows() -> None:
    """Fewer ids than that number something else, such as hospitals."""
    rows = range(200)
    for ids, notes in ((3, (NO_COLUMN,)), (4, (RECOGNISED,))):
        columns = {"id": tuple(str(row % ids) for row in rows)}
        assert patients_of(columns, rows, "patient")[1] == notes


def test_a_single_row_is_a_patient_under_its_id() -> None:
    assert patients_of({"patient": ("a",)}, (2,), "patient") == (["a"], ())


def test_columns_of_patients_ids_are_recognised_by_their_headings() -> None:
    assert patient_columns(["age", "mrn", "patient_age", "subject"]) == ["mrn", "subject"]


def test_patients_with_cases_of_several_classes_are_counted_in_a_note() -> None:
    def cases(**targets: tuple[int | None, ...]) -> list[Case]:
        return [
            Case(f"{who}{i}", who, "t", (), None, t) for who in targets for i, t in enumerate(targets[who])
        ]

    assert classes_note(cases(a=(0, 0), b=(1,), c=(None, 1))) == ()
    assert classes_note(cases(a=(0, 1), b=(2, 0, 2), c=(1, 1)))[0].startswith(
        "2 patients have cases of different classes; results count a patient once"
    )


def test_ids_that_look_alike_are_of_one_patient() -> None:
    # One patient by a Mac's spelling, a space that does not break, and a mark that nobody sees.
    columns = {"patient": ("Mu\u0308ller 1", "M\u00fcller\u00a01", "M\u00fcller \u200b1\ufeff", "Mueller 1")}
    assert patients_of(columns, LINES, "patient")[0] == ["M\u00fcller 1"] * 3 + ["Mueller 1"]
    joined = {"mrn": ("a\u200b", "a", "b", "c"), "subject": ("x", "y", "z", "w")}
    patients, _ = patients_of(joined, LINES, "patient")
    assert patients[0] == patients[1] != patients[2]
