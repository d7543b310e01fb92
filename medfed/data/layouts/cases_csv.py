"""A table of cases, cases.csv: the layout that states everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from medfed.data.csv_table import CASE_COLUMNS, check_columns, parse_split, parse_target, read_rows
from medfed.data.layouts._layout import CaseError, CaseListing, Layout, ListedCase
from medfed.errors import DataError, ImageError

FILE_NAME = "cases.csv"

REQUIRED_COLUMNS = ("case", "image")

# Between the images of one case in a cell: one file per channel, in order.
CHANNEL_SEPARATOR = "|"

NO_PATIENT_COLUMN = "cases.csv has no column 'patient': each case counts as a patient of its own"


class CasesCsv(Layout, tag="cases_csv", frozen=True):
    """A table cases.csv with one row per case; its paths are relative to the folder."""

    title: ClassVar[str] = "cases.csv"
    evidence: ClassVar[str] = "cases.csv"
    order: ClassVar[int] = 10

    def recognises(self, folder: Path) -> bool:
        return (folder / FILE_NAME).is_file()

    def read(self, folder: Path) -> CaseListing:
        rows = read_rows(folder / FILE_NAME, FILE_NAME)
        columns = next(rows)[1]
        check_columns(columns, REQUIRED_COLUMNS, FILE_NAME)
        cases: list[ListedCase] = []
        row_of: dict[str, int] = {}
        for number, cells in rows:
            row = dict(zip(columns, cells, strict=True))
            where = f"{FILE_NAME} row {number}"
            if not row["case"]:
                raise DataError(f"{where}: the case has no id; fill the column 'case'")
            try:
                if row["case"] in row_of:
                    raise DataError(
                        f"the same case id as row {row_of[row['case']]}; every case needs an id of its own, "
                        "and a patient's several visits share the column 'patient'"
                    )
                cases.append(_case(folder, row))
            except DataError as error:
                raise CaseError(row["case"], str(error), type(error), where) from None
            row_of[row["case"]] = number
        return CaseListing(self.title, tuple(cases), patient_notes(columns))


def patient_notes(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the note that is due for a table without a patient column."""
    return () if "patient" in columns else (NO_PATIENT_COLUMN,)


def image_paths(folder: Path, cell: str) -> tuple[Path, ...]:
    """Return the paths in a cell of the column 'image', one per channel."""
    return tuple(folder / part.strip() for part in cell.split(CHANNEL_SEPARATOR)) if cell else ()


def other_columns(row: dict[str, str]) -> MappingProxyType[str, str]:
    """Return the cells of the columns that mean nothing to medfed."""
    return MappingProxyType({name: cell for name, cell in row.items() if name not in CASE_COLUMNS})


def _case(folder: Path, row: dict[str, str]) -> ListedCase:
    images = image_paths(folder, row["image"])
    if not images:
        raise DataError("the column 'image' is empty; give the image's path relative to the folder")
    if not all(path.exists() for path in images):
        raise ImageError("its image is not there; correct the path in the column 'image' or restore the file")
    label = folder / row["label"] if row.get("label") else None
    if label is not None and not label.exists():
        raise ImageError("its label is not there; correct the path in the column 'label' or restore the file")
    return ListedCase(
        id=row["case"],
        patient=row.get("patient") or row["case"],
        image=images,
        label=label,
        target=parse_target(row["target"]) if "target" in row else None,
        split=parse_split(row.get("split", "")),
        attributes=other_columns(row),
    )
