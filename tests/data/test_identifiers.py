"""Columns that identify patients are recognised, and measurements are not taken for them."""

from __future__ import annotations

import pytest

from medfed.data.identifiers import is_unmistakable, kind_by_cells, kind_by_heading, shown_heading


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


@pytest.mark.parametrize("wrote", ["{}.0", "{}.", "{},0", "-{}", "+{}", "{}.00"])
def test_an_id_that_a_spreadsheet_wrote_as_a_quantity_is_an_id(wrote: str) -> None:
    ids = [str(200_000 + 37 * n) for n in range(40)]
    assert kind_by_cells([wrote.format(one) for one in ids]) == "unique"
    assert kind_by_cells([f"{int(one):.5e}" for one in ids]) == "unique"
    days = [f"19{n:02}0703" for n in range(30, 90)]
    assert kind_by_cells([wrote.format(day) for day in days]) == "date"
    amounts = [f"{n / 7:.2f}" for n in range(40)]
    assert kind_by_cells(amounts) is None
