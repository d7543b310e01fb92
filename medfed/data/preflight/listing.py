"""A hospital's cases, listed however broken the folder is: what the index refuses becomes a line, and
the rest goes on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medfed.data.cache_location import files_below
from medfed.data.index import Case, index_folder
from medfed.data.layouts import LAYOUTS
from medfed.data.layouts._layout import is_nifti, stem
from medfed.data.layouts.cases_csv import (
    CASE_COLUMNS,
    CHANNEL_SEPARATOR,
    NEEDED_COLUMNS,
    check_columns,
    is_table,
    read_split,
    read_target,
)
from medfed.data.splits import UNASSIGNED, assign_splits, case_token
from medfed.errors import DataError


@dataclass(frozen=True, slots=True, repr=False)
class Listing:
    """Cases, what each is called in public, and what is wrong with the list: (code, name, detail)."""

    layout: str
    cases: tuple[Case, ...]
    names: tuple[str, ...]
    troubles: tuple[tuple[str, str, str], ...] = ()
    class_names: tuple[str, ...] = ()


def list_folder(folder: Path, key: bytes, fractions: Sequence[float]) -> Listing:
    """Return what a folder holds; whatever the index would raise is a trouble in it instead."""
    if is_table(folder):
        return _table(folder, key, fractions)
    try:
        index = index_folder(folder, site_secret=key, fractions=fractions)
    except DataError as error:
        return _fallback_listing(folder, key, fractions, str(error))
    notes = tuple(("note", "", note) for note in index.notes)
    return Listing(index.layout, index.cases, _numbered(index.cases), notes, index.class_names)


def _numbered(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(f"case {number} ({case.token})" for number, case in enumerate(cases, start=1))


# ---------------------------------------------------------------------------------------------- cases.csv


def _table(folder: Path, key: bytes, fractions: Sequence[float]) -> Listing:
    where = "cases.csv"
    try:
        columns, rows = _rows(folder / where)
        check_columns(columns, NEEDED_COLUMNS, where)
    except DataError as error:
        found = _fallback_listing(folder, key, fractions, str(error))
        return replace(found, layout="cases.csv, which can't be read")
    cases: list[Case] = []
    names: list[str] = []
    troubles: list[tuple[str, str, str]] = []
    seen: dict[str, str] = {}
    for number, cells in rows:
        if len(cells) != len(columns):
            detail = f"it has {len(cells)} cells, the heading has {len(columns)}; quote cells that hold the separator"
            troubles.append(("row", f"row {number}", detail))
            continue
        row = dict(zip(columns, cells, strict=True))
        token = case_token(key, row["case"] or f"row {number}")
        name = f"row {number} ({token})"
        if not row["case"] or not row["image"]:
            empty = "case" if not row["case"] else "image"
            troubles.append(("row", name, f"the column '{empty}' is empty"))
        if row["case"] and row["case"] in seen:
            troubles.append(("row", name, f"the same case id as {seen[row['case']]}"))
        seen.setdefault(row["case"], name)
        case, more = _case(folder, row, token, number)
        troubles += [(code, name, detail) for code, detail in more]
        cases.append(case)
        names.append(name)
    if "patient" not in columns:
        troubles.append(
            ("note", "", "cases.csv has no column 'patient': each case counts as a patient of its own")
        )
    troubles += _two_splits(cases, names)
    return Listing("cases.csv", _with_splits(cases, key, fractions), tuple(names), tuple(troubles))


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the columns and each row with the number that a spreadsheet shows, of any number of cells.

    Raises:
        DataError: for what is no table.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("cases.csv is not UTF-8 text; save it as 'CSV UTF-8'") from None
    if "\0" in text or not text.strip():
        raise DataError(
            "cases.csv is empty, or holds zero bytes and is no text table; save it as 'CSV UTF-8'"
        )
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    rows: list[tuple[int, list[str]]] = []
    try:
        for number, cells in enumerate(
            csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
        ):
            cells = [cell.strip() for cell in cells]
            if any(cells):
                rows.append((number, cells))
    except csv.Error:
        if not rows:
            raise DataError("cases.csv cannot be read as a table: a quote is opened and not closed") from None
        rows.append((rows[-1][0] + 1, []))  # told as a row of no cells; nothing after it can be trusted
    return [cell.lower() for cell in rows[0][1]], rows[1:]


def _case(folder: Path, row: dict[str, str], token: str, number: int) -> tuple[Case, list[tuple[str, str]]]:
    troubles: list[tuple[str, str]] = []
    images = (
        tuple(folder / part.strip() for part in row["image"].split(CHANNEL_SEPARATOR)) if row["image"] else ()
    )
    label = folder / row["label"] if row.get("label") else None
    for which, paths in (("image", images), ("label", (label,) if label is not None else ())):
        for path in paths:
            if not path.exists():
                troubles.append(("missing_file", f"its {which} is not there; correct the column '{which}'"))
    target, split = None, UNASSIGNED
    try:
        target = read_target(row["target"], "its row") if "target" in row else None
    except DataError as error:
        troubles.append(("row", str(error)))
    try:
        split = read_split(row.get("split", ""), "its row")
    except DataError as error:
        troubles.append(("row", str(error)))
    name = row["case"] or f"row {number}"
    return Case(
        id=name,
        patient=row.get("patient") or name,
        token=token,
        image=images,
        label=label if label is not None and label.exists() else None,
        target=target,
        split=split,
        attributes={k: v for k, v in row.items() if k not in CASE_COLUMNS},
    ), troubles


def _two_splits(cases: Sequence[Case], names: Sequence[str]) -> list[tuple[str, str, str]]:
    first: dict[str, int] = {}
    found = []
    for number, case in enumerate(cases):
        if case.split == UNASSIGNED:
            continue
        before = first.setdefault(case.patient, number)
        if cases[before].split != case.split:
            detail = f"in {case.split}, and {names[before]} of the same patient in {cases[before].split}"
            found.append(("patient_in_two_splits", names[number], detail))
    return found


def _with_splits(cases: Sequence[Case], key: bytes, fractions: Sequence[float]) -> tuple[Case, ...]:
    return assign_splits(cases, key, fractions) if cases else ()


# ---------------------------------------------------------------------------------------------- anything else


def _fallback_listing(folder: Path, key: bytes, fractions: Sequence[float], refusal: str) -> Listing:
    """Return every image found below, each a case, where the folder is of no layout that training would take."""
    recognised = next((read.__name__ for recognise, read in LAYOUTS if recognise(folder)), "")
    files = [path for path in files_below(folder) if not path.name.startswith(".")]
    niftis = [path for path in files if is_nifti(path)]
    labels = {stem(path): path for path in niftis if "label" in path.parent.name.lower()}
    images: list[tuple[Path, Path | None]] = []
    for path in niftis:
        if path not in labels.values():
            name = stem(path)
            images.append((path, labels.get(name) or labels.get(name.removesuffix("_0000"))))
    folders = sorted({path.parent for path in files if path.suffix.lower() == ".dcm" or _dicom(path)})
    images += [(path, None) for path in folders]
    cases = [
        Case(
            id=str(image.relative_to(folder)),
            patient=str(image.relative_to(folder)),
            token=case_token(key, str(image.relative_to(folder))),
            image=(image,),
            label=label,
            split=UNASSIGNED,
        )
        for image, label in images
    ]
    layout = (
        "no layout that medfed knows" if not recognised else f"{recognised.replace('_', ' ')}, with mistakes"
    )
    found = _with_splits(cases, key, fractions)
    return Listing(layout, found, _numbered(found), (("folder", "", refusal),))


def _dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
