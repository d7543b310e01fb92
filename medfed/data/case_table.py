"""The table beside a hospital's images: its file, which row is of which case, and each case's inputs.

`with_table` is the one reader: `medfed check`, training and `medfed predict` use it, so that one passes
exactly what the others take. A row is matched by a name that the hospital wrote, never by its position; a
case without a row, with several, or with one that cannot be read is refused as one with a damaged image is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medfed.data.case import Case
from medfed.data.case_rows import CaseRows
from medfed.data.harmonise import TableSums, sums
from medfed.data.identifiers import PLACEHOLDERS, kind_by_heading, patient_key
from medfed.data.index import Index
from medfed.data.layouts._files import stem
from medfed.data.own_data import OwnData
from medfed.data.patients import patient_columns
from medfed.data.refusals import (
    MissingRowError,
    OtherPatientRowError,
    SeveralRowsError,
    TableRowError,
    of_case,
    reason_of,
)
from medfed.data.settings import CaseTable, Table, of_case_table
from medfed.data.site_table import SiteTable, open_table
from medfed.data.table import (
    TableRows,
    column_findings,
    fit_scaling,
    network_inputs,
    parse_numbers,
    row_inputs,
    study_cells,
)
from medfed.data.table_file import CASES_FILE, PARTICIPANTS_FILE
from medfed.errors import DataError

WHERE = "the site's table beside the images"

# The tables that are looked for in a site's folder.
FILES = ("clinical.csv", "clinical.tsv", "clinical.xlsx", PARTICIPANTS_FILE)

# How BIDS writes a subject in its table of participants; its files' entity is what follows.
BIDS_SUBJECT = "sub-"

# The words for the naming columns in a site file's `columns`, whatever the study calls them.
ROLES = ("case", "patient")


@dataclass(frozen=True, repr=False)
class _Naming:
    """Which column names the cases or patients of rows, and which cases each name stands for."""

    column: str
    by_patient: bool
    cases: Mapping[str, Sequence[Case]]
    patient_column: str | None
    note: str = ""


def with_table(index: Index, settings: CaseTable | None, own: OwnData | None = None) -> Index:
    """Return an index with the rows of the table beside its images; the same index without settings.

    A case whose row cannot be used keeps its place in the index; `rows.refused` says why. Cases that
    `missing: drop` leaves out are no longer in it.

    Raises:
        DataError: for a table that cannot be read, lacks a column, or names no case of the folder.
    """
    if settings is None:
        return index
    own = own or OwnData()
    path = find_case_table(index.folder, settings, own.file)
    try:
        rows = _read(path, index, settings, own)
    except DataError as error:
        sought = f"; the columns were sought in {CASES_FILE}, as the folder has none of {', '.join(FILES)}"
        hint = sought if path == index.folder / CASES_FILE and settings.file is None else ""
        raise DataError(of_case_table(f"{error}{hint}")) from None
    dropped = {case.token for case in rows.dropped}
    cases = tuple(case for case in index.cases if case.token not in dropped)
    if not cases:
        raise DataError(
            f"{WHERE}: every case has an empty number, and data.table.missing is drop; fill the cells, or "
            "take median"
        )
    return replace(
        index,
        cases=cases,
        rows=rows,
        left_out_files=_without(index.left_out_files, path),
    )


def find_case_table(folder: Path, settings: CaseTable, own: str | None = None) -> Path:
    """Return the table beside a folder's images.

    Raises:
        DataError: if there is none, or several.
    """
    if own is not None:
        if not Path(own).is_file():
            raise DataError(f"{WHERE} is not there; correct `table` in the site file")
        return Path(own)
    present = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    if settings.file is not None:
        if settings.file.lower() not in present:
            raise DataError(
                f"{WHERE} is not there: the folder has no file '{settings.file}' (data.table.file); add "
                "it, or "
                "name the site's own in the site file (`table`)"
            )
        return present[settings.file.lower()]
    named = [name for name in FILES if name in present]
    if len(named) > 1:
        raise DataError(
            f"the folder holds {' and '.join(named)}, and nothing says which is the table beside the images; "
            "name it in data.table.file or in the site file (`table`)"
        )
    if named or CASES_FILE in present:
        return present[named[0] if named else CASES_FILE]
    raise DataError(
        f"{WHERE} is not there: the folder has none of {', '.join((*FILES, CASES_FILE))}; add one, or "
        "name the "
        "file in data.table.file or in the site file (`table`)"
    )


def _read(path: Path, index: Index, settings: CaseTable, own: OwnData) -> CaseRows:
    reading = settings.as_table
    roles = dict(zip(ROLES, (settings.case, settings.patient), strict=True))
    headings = {roles.get(name, name): word for name, word in own.headings.items()}
    table = open_table(path, [*settings.features], headings, WHERE)
    naming = _naming(table, index, settings)
    lines, unmatched = _match(table, naming)
    _require_match(lines, unmatched, index, naming)
    cells, cell_notes = study_cells(table, reading)
    rows = _case_rows(index.cases, lines, _Cells(table, naming, cells, reading))
    matched = sum(len(lines[case.token]) == 1 for case in index.cases)
    notes = [f"{WHERE} has a row for {matched} of {len(index.cases)} cases"]
    if unmatched:
        notes.append(f"{WHERE}: {unmatched} rows name no case of the folder and are left out")
    if rows.dropped:
        notes.append(
            f"{len(rows.dropped)} cases have an empty number in the table and are left out "
            "(data.table.missing)"
        )
    notes += [*([naming.note] if naming.note else []), *table.notes, *map(of_case_table, cell_notes)]
    return replace(rows, notes=tuple(notes))


# ------------------------------------------------------------------------------------ which row is whose


def _naming(table: SiteTable, index: Index, settings: CaseTable) -> _Naming:
    """Return which column names cases or patients.

    Raises:
        DataError: if none does, or several might.
    """
    case, patient = settings.case.lower(), settings.patient.lower()
    own = [name for name in patient_columns(table.columns) if name != case]
    of_patient = patient if patient in table.columns else own[0] if len(own) == 1 else None
    if case in table.columns:
        return _Naming(case, False, _cases_by_name(index.cases), of_patient)
    if settings.case != "case":
        raise DataError(f"{WHERE} has no column '{settings.case}' (data.table.case)")
    if patient in table.columns:
        return _Naming(patient, True, _by_patient(index.cases), patient)
    if settings.patient != "patient":
        raise DataError(f"{WHERE} has no column '{settings.patient}' (data.table.patient)")
    if of_patient is not None:
        note = f"{WHERE}: its rows are matched by the column with the patients' ids"
        return _Naming(of_patient, True, _by_patient(index.cases), of_patient, note)
    rows = [name for name in table.columns if kind_by_heading(name) == "row"]
    if not own and len(rows) == 1:
        note = f"{WHERE}: its rows are matched by the column with the cases' ids"
        return _Naming(rows[0], False, _cases_by_name(index.cases), None, note)
    found = (
        f"{len(own)} columns with patients' ids" if own else "no column that names the case or the patient"
    )
    raise DataError(
        f"{WHERE} has {found}; call one 'case' or 'patient', or name it in data.table.case, "
        "data.table.patient "
        "or the site file (`columns`)"
    )


def _cases_by_name(cases: Iterable[Case]) -> Mapping[str, Sequence[Case]]:
    """Return each case by its id, and by the name of its image's file where no other case has that name."""
    by_id = {case.id: (case,) for case in cases}
    by_file: dict[str, list[Case]] = defaultdict(list)
    for case in by_id.values():
        for name in _file_names(case[0]):
            by_file[name].append(case[0])
    unique = {name: tuple(named) for name, named in by_file.items() if len(named) == 1}
    return {**unique, **by_id}


def _file_names(case: Case) -> set[str]:
    first = case.image[0] if case.image else ()
    return {first.name, stem(first)} if isinstance(first, Path) else set()


def _by_patient(cases: Iterable[Case]) -> Mapping[str, Sequence[Case]]:
    """Return the cases of each patient; one that counts as a patient of its own by its file's name, too."""
    by_patient: dict[str, list[Case]] = defaultdict(list)
    alone = []
    for case in cases:
        by_patient[case.patient].append(case)  # by its `patient_key`
        alone += [case] if case.patient == patient_key(case.id) else []
    return {**_cases_by_name(alone), **by_patient}


def _match(table: SiteTable, naming: _Naming) -> tuple[Mapping[str, list[int]], int]:
    """Return the positions of each case's rows, by token, and how many rows name no case."""
    rows: dict[str, list[int]] = defaultdict(list)
    unmatched = 0
    for position, written in enumerate(table.columns[naming.column]):
        cell = patient_key(written) if naming.by_patient else written
        cases = naming.cases.get(cell, naming.cases.get(cell.removeprefix(BIDS_SUBJECT), ()))
        unmatched += not cases
        for case in cases:
            rows[case.token].append(position)
    return rows, unmatched


def _require_match(lines: Mapping[str, list[int]], unmatched: int, index: Index, naming: _Naming) -> None:
    if any(lines.values()):
        return
    what = "patients" if naming.by_patient else "cases"
    raise DataError(
        f"{WHERE} has {unmatched} rows, and none names one of the folder's {len(index.cases)} cases: the "
        "column "
        f"that should name {what} holds none of their {'ids' if naming.by_patient else 'ids or file names'}; "
        "correct it (spreadsheets drop leading zeros), or name another column in data.table.case or "
        "data.table.patient"
    )


# ------------------------------------------------------------------------------------ what a row says


@dataclass(frozen=True, repr=False)
class _Cells:
    """A table's cells as the study means them, by heading."""

    table: SiteTable
    naming: _Naming
    cells: Mapping[str, Sequence[str]]
    settings: Table


def _case_rows(cases: Sequence[Case], lines: Mapping[str, list[int]], source: _Cells) -> CaseRows:
    parsed = list(parse_numbers(source.cells, source.settings))
    numbers: dict[str, Sequence[float]] = {}
    words: dict[str, Sequence[float]] = {}
    refused: dict[str, DataError] = {}
    dropped: list[Case] = []
    for case in cases:
        try:
            position = _only_row(case, lines.get(case.token, []), source)
            inputs = _inputs(position, parsed[position], source)
        except TableRowError as error:
            refused[case.token] = of_case(error, case.token)
            continue
        if inputs is None:
            dropped.append(case)
        else:
            numbers[case.token], words[case.token] = inputs
    used = sorted({lines[token][0] for token in numbers})
    return CaseRows(numbers, words, refused, tuple(dropped), _warnings(used, parsed, source))


def _only_row(case: Case, positions: Sequence[int], source: _Cells) -> int:
    """Return the position of a case's row.

    Raises:
        TableRowError: if it has none or several, or its row says that it is of another patient.
    """
    table, naming = source.table, source.naming
    if not positions:
        raise MissingRowError(f"{WHERE} has no row for it; add the row, or remove the case from the folder")
    if len(positions) > 1:
        named = " and ".join(str(table.lines[position]) for position in positions[:3])
        raise SeveralRowsError(
            f"{WHERE} has {len(positions)} rows for it, such as {named}; keep the right one"
        )
    column = naming.patient_column
    # A folder that knows no patients calls each case one of its own.
    if column is not None and not naming.by_patient and case.patient != patient_key(case.id):
        patient = patient_key(table.columns[column][positions[0]])
        same = case.patient in (patient, patient.removeprefix(BIDS_SUBJECT))
        if not same and patient.lower() not in PLACEHOLDERS:
            raise OtherPatientRowError(
                f"{WHERE}, row {table.lines[positions[0]]}: the row names another patient than the image; "
                "correct whichever is wrong"
            )
    return positions[0]


def _inputs(
    position: int, numbers: Sequence[float] | None, source: _Cells
) -> tuple[Sequence[float], list[float]] | None:
    row = {name: column[position] for name, column in source.cells.items()}
    try:
        return row_inputs(row, numbers, source.settings)
    except DataError as error:
        place = f"{WHERE}, row {source.table.lines[position]}"
        raise TableRowError(of_case_table(f"{place}: {error}")) from None


def _warnings(
    used: Sequence[int], parsed: Sequence[Sequence[float] | None], source: _Cells
) -> tuple[str, ...]:
    """Return what is odd about the columns of numbers, over the rows of cases."""
    names = source.settings.numbers
    numbers = [
        row_inputs({name: column[i] for name, column in source.cells.items()}, parsed[i], source.settings)
        for i in used
    ]
    array = np.array([row[0] for row in numbers if row is not None], np.float64).reshape(-1, len(names))
    cells = {name: [column[i] for i in used] for name, column in source.cells.items()}
    return tuple(of_case_table(line) for line in column_findings(source.settings, cells, array))


def _without(files: Mapping[str, tuple[Path, ...]], table: Path) -> Mapping[str, tuple[Path, ...]]:
    """Return the files that no case uses, without the table."""
    real = table.resolve()
    left = {
        reason: tuple(path for path in paths if path.resolve() != real) for reason, paths in files.items()
    }
    return {reason: paths for reason, paths in left.items() if paths}


# ------------------------------------------------------------------------------------ a network's inputs


def case_inputs(
    index: Index, settings: CaseTable, cases: Iterable[Case]
) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    """Return the inputs (F,) float32 of each of the cases that has a row, by token, and notes.

    Medians, means and deviations are of these cases' rows in the split 'train', one row per case, and stay
    in the hospital.
    """
    assert index.rows is not None
    rows = index.rows
    known = tuple(case for case in cases if case.token in rows.numbers)
    if not known:  # each is refused for its row, and told so when the cases are screened
        return {}, ()
    numbers = np.array([rows.numbers[case.token] for case in known], np.float64).reshape(len(known), -1)
    words = np.array([rows.words[case.token] for case in known], np.float32).reshape(len(known), -1)
    table = TableRows(replace(index, cases=known), numbers, words, np.empty(0))
    reading = settings.as_table
    scaling, notes = fit_scaling(table, reading)
    inputs = torch.from_numpy(network_inputs(table, scaling, reading))
    return {case.token: one for case, one in zip(known, inputs, strict=True)}, tuple(
        map(of_case_table, notes)
    )


def case_training_sums(
    index: Index, settings: CaseTable, cases: Iterable[Case], *, min_count: int
) -> TableSums:
    """Return the sums over the rows of training cases, one per case, that a plan needs from every hospital.

    Raises:
        TooFewPatientsError: for fewer than `min_count` patients.
    """
    assert index.rows is not None
    known = [case for case in cases if case.token in index.rows.numbers]
    names = settings.as_table.numbers
    numbers = np.array([index.rows.numbers[case.token] for case in known], np.float64)
    patients = [case.patient for case in known]
    return sums(numbers.reshape(len(known), len(names)), patients, names, min_count=min_count)


def count_matched(rows: CaseRows) -> Mapping[str, int]:
    """Return how many cases have a row, and why the others have none that can be used."""
    return {"with a row": len(rows.numbers), **Counter(map(reason_of, rows.refused.values()))}
