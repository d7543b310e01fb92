"""A table of cases, cases.csv: the layout that states everything."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, TypeVar

from medfed.data.case import is_there
from medfed.data.csv_table import EMPTY_CELLS, check_columns, parse_split, parse_target, read_rows
from medfed.data.identifiers import PLACEHOLDERS
from medfed.data.layouts._header_patients import NO_PATIENT_COLUMN
from medfed.data.layouts._layout import CaseError, CaseListing, Layout, ListedCase
from medfed.data.layouts._survey import Survey
from medfed.data.patients import RECOGNISED, patient_columns
from medfed.data.splits import UNASSIGNED
from medfed.data.table_file import CASE_COLUMNS
from medfed.errors import DataError, ImageError

_Value = TypeVar("_Value")

FILE_NAME = "cases.csv"

REQUIRED_COLUMNS = ("case", "image")

# Between the images of one case in a cell: one file per channel, in order.
CHANNEL_SEPARATOR = "|"


class CasesCsv(Layout, tag="cases_csv", frozen=True):
    """A table cases.csv with one row per case; its paths are relative to the folder."""

    title: ClassVar[str] = "cases.csv"
    needs: ClassVar[str] = "a table cases.csv"
    order: ClassVar[int] = 10
    rank: ClassVar[int] = 2

    def evidence(self, survey: Survey) -> str | None:
        return "it holds cases.csv" if survey.named(FILE_NAME) is not None else None

    def read(self, survey: Survey) -> CaseListing:
        folder = survey.folder
        if survey.named(FILE_NAME) is None:
            raise DataError("the site's data folder has no cases.csv; write one, or name another layout")
        notes: list[str] = []
        rows = read_rows(folder / FILE_NAME, FILE_NAME, notes=notes)
        columns = next(rows)[1]
        check_columns(columns, REQUIRED_COLUMNS, FILE_NAME)
        cases: list[ListedCase] = []
        row_of_id: dict[str, int] = {}
        for number, cells in rows:
            row = dict(zip(columns, cells, strict=True))
            case, refusals = read_row(folder, row, number, row_of_id)
            # A missing file costs its case, which is refused when it is read.
            errors = [error for error in refusals if not isinstance(error, ImageError)]
            if errors and not row["case"]:
                raise DataError(f"{FILE_NAME} row {number}: {errors[0]}")
            if errors:
                raise CaseError(case.id, str(errors[0]), type(errors[0]), f"{FILE_NAME} row {number}")
            cases.append(case)
        noted = (*notes, *patient_notes(columns))
        return CaseListing(self.title, tuple(cases), noted, read=(folder / FILE_NAME,))


def patient_notes(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the note that is due for a table without a patient column."""
    if "patient" in columns:
        return ()
    return (RECOGNISED,) if patient_columns(columns) else (NO_PATIENT_COLUMN,)


def _patient(row: Mapping[str, str]) -> str:
    """Return the patient's id in a row: of the column 'patient', else of one that is recognised, or ''."""
    if "patient" in row:
        return row["patient"]
    ids = (row[column] for column in patient_columns(row))
    return next((cell for cell in ids if cell.lower() not in PLACEHOLDERS), "")


def read_row(
    folder: Path, row: Mapping[str, str], number: int, row_of_id: dict[str, int]
) -> tuple[ListedCase, list[DataError]]:
    """Return the case of a row as far as it can be read, and each reason to refuse it, in order.

    `row_of_id` holds the first row of each case id; this row's id is added. A missing file is an ImageError.
    """
    first = row_of_id.setdefault(row["case"], number)
    parts = row["image"].split(CHANNEL_SEPARATOR) if row["image"] else []
    images = tuple(_path(folder, part.strip()) for part in parts)
    label = _path(folder, row["label"]) if row.get("label") else None
    errors: list[DataError] = []
    if not row["case"]:
        errors.append(DataError("the case has no id; fill the column 'case'"))
    elif first != number:
        remedy = (
            "every case needs an id of its own, and a patient's several visits share the column 'patient'"
        )
        errors.append(DataError(f"the same case id as row {first}; {remedy}"))
    if not images:
        remedy = "give the image's path relative to the folder"
        errors.append(DataError(f"the column 'image' is empty; {remedy}"))
    for column, paths in (("image", images), ("label", (label,) if label is not None else ())):
        if not all(is_there(path) for path in paths):
            remedy = f"correct the path in the column '{column}' or restore the file"
            errors.append(ImageError(f"its {column} is not there; {remedy}"))
    identity, target = row["case"] or f"row {number}", row.get("target", "")
    case = ListedCase(
        id=identity,
        patient=_patient(row) or identity,
        image=images,
        label=label,
        # A folder to segment may have the column, too: a task that needs classes counts who has none.
        target=_parsed(parse_target, target, errors) if target.lower() not in EMPTY_CELLS else None,
        split=_parsed(parse_split, row.get("split", ""), errors) or UNASSIGNED,
        attributes=MappingProxyType({name: cell for name, cell in row.items() if name not in CASE_COLUMNS}),
    )
    return case, errors


def _path(folder: Path, cell: str) -> Path:
    """Return the path that a cell means: as written, else as Windows or a Mac would write the same name."""
    plain = cell.replace("\\", "/")
    ways = (cell, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    return next((folder / way for way in ways if is_there(folder / way)), folder / cell)


def _parsed(parse: Callable[[str], _Value], cell: str, errors: list[DataError]) -> _Value | None:
    """Return what a cell holds; if it is refused, None, and the refusal is added to `errors`."""
    try:
        return parse(cell)
    except DataError as error:
        errors.append(error)
        return None
