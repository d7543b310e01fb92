"""A hospital's table: from its rows to the inputs of a network.

Medians, means and deviations come from the site's own training rows and stay there. A cell is refused rather
than guessed: for a word in place of a number, the message names row and column, never the cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medfed.data import harmonise
from medfed.data.case import Case
from medfed.data.csv_table import EMPTY_CELLS, parse_split, parse_target
from medfed.data.identifiers import is_unmistakable
from medfed.data.index import Index, check_cases
from medfed.data.patients import DEFAULT_COLUMN, classes_note, patients_of
from medfed.data.settings import Table
from medfed.data.site_table import ROLES, WHERE, SiteTable, is_number, open_table, with_decimal_points
from medfed.data.splits import assign_splits, case_token
from medfed.data.table_findings import duplicate_findings, identifier_findings, number_findings
from medfed.errors import DataError

# What a note says of a column with decimal commas.
DECIMAL_COMMAS = "column '{name}' has decimal commas, which were read as decimal points"

# Deviations smaller than this, as a fraction of the largest number, are rounding: the column is constant.
CONSTANT = 1e-9

# The largest number that a network's input can hold.
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False, repr=False)
class TableRows:
    """A table's rows in the index's order, before anything is computed from them.

    numbers: (N, numeric features) float64, NaN where empty.  words: (N, words of all categorical features), 0
    or 1.  targets: (N,) int64 classes, or (N, 2) float32 of time and event; (0,) if they were not read.
    warnings: what a person should look at before the study trains.  dropped: the rows that `missing: drop`
    leaves out.
    """

    index: Index
    numbers: NDArray[np.float64]
    words: NDArray[np.float32]
    targets: NDArray[Any]
    warnings: tuple[str, ...] = ()
    dropped: tuple[Case, ...] = ()

    def in_split(self, split: str) -> NDArray[np.bool_]:
        """Return which rows are in a split, (N,)."""
        return np.array([case.split == split for case in self.index.cases])


@dataclass(frozen=True, repr=False)
class _Request:
    """What decides how a row is read."""

    settings: Table
    site_secret: bytes
    classes: int | None


@dataclass(frozen=True, repr=False)
class _Row:
    case: Case
    numbers: Sequence[float]
    words: list[float]
    target: int | tuple[float, float] | None


def read_table(
    path: str | Path,
    settings: Table,
    *,
    site_secret: bytes,
    classes: int | None = None,
    own_headings: Mapping[str, str] = MappingProxyType({}),
) -> TableRows:
    """Return the rows of a site's table, checked; `path` is the file, or a folder with only one.

    `own_headings` gives the site's own heading for a column of the study, by the study's (`columns` in the
    site file).

    Raises:
        DataError: naming row and column, or the column that is missing.
    """
    required = [*settings.features, *_target_columns(settings)]
    if settings.patient != DEFAULT_COLUMN:
        required.append(settings.patient)
    table = open_table(Path(path), required, _study_headings(own_headings, settings))
    patients, patient_notes = patients_of(table.columns, table.lines, settings.patient)
    cells, cell_notes = study_cells(table, settings)
    request = _Request(settings, site_secret, classes)
    by_row = zip(table.lines, patients, parse_numbers(cells, settings), *cells.values(), strict=True)
    read = [
        _read_row(line, patient, dict(zip(cells, named, strict=True)), parsed, request)
        for line, patient, parsed, *named in by_row
    ]
    rows = [row for row in read if isinstance(row, _Row)]
    if not rows:
        raise DataError(
            f"{WHERE} has no row to learn from"
            + ("; every row had an empty cell, see data.missing" if settings.missing == "drop" else "")
        )
    cases = assign_splits([row.case for row in rows], site_secret, settings.fractions, settings.fold)
    check_cases(cases)
    _check_survival(rows)
    notes = (*table.notes, *patient_notes, *cell_notes, *classes_note(cases))
    numbers = np.array([row.numbers for row in rows], np.float64).reshape(len(rows), -1)
    words = np.array([row.words for row in rows], np.float32).reshape(len(rows), -1)
    targets = np.array(
        [row.target for row in rows if row.target is not None], np.float32 if settings.time else np.int64
    )
    warnings = _warnings(settings, cells, cases, (numbers, words, targets))
    dropped = tuple(row for row in read if isinstance(row, Case))
    return TableRows(Index(Path(path), "a table", cases, notes), numbers, words, targets, warnings, dropped)


def read_inputs(
    path: str | Path, settings: Table, *, site_secret: bytes, own_headings: Mapping[str, str]
) -> TableRows:
    """Return the rows of a site's table without what the study predicts, whose columns it may lack.

    New patients have no outcome yet, and are in no fold. Whatever these columns hold is not read, and the
    site's own headings for them need not be there.

    Raises:
        DataError: as `read_table`.
    """
    answers = {name.lower() for name in _target_columns(settings)}
    return read_table(
        path,
        msgspec.structs.replace(settings, target=None, time=None, event=None, fold=None),
        site_secret=site_secret,
        own_headings={name: word for name, word in own_headings.items() if name.lower() not in answers},
    )


def _check_survival(rows: Sequence[_Row]) -> None:
    """Raise if two rows of one patient differ in time or event: a patient has one, and is measured once.

    Raises:
        DataError: naming both rows.
    """
    first: dict[str, _Row] = {}
    for row in rows:
        earlier = first.setdefault(row.case.patient, row)
        if isinstance(row.target, tuple) and row.target != earlier.target:
            raise DataError(
                f"{WHERE}: row {_line(earlier)} (case {earlier.case.token}) and row {_line(row)} (case "
                f"{row.case.token}) are of one patient and differ in time or event; keep one row "
                "per patient"
            )


def _line(row: _Row) -> str:
    return row.case.id.rpartition("/")[2]


def _study_headings(own: Mapping[str, str], settings: Table) -> dict[str, str]:
    """Return the site's headings by the study's; the words of ROLES stand for what the study calls them."""
    roles = dict(zip(ROLES, (settings.patient, settings.split), strict=True))
    return {name if name in settings.features else roles.get(name, name): word for name, word in own.items()}


def study_cells(table: SiteTable, settings: Table) -> tuple[dict[str, Sequence[str]], list[str]]:
    """Return the columns that may be used, as the study means them, and notes on what was changed.

    Columns that identify patients are left out, decimal commas become points, and cells that stand for
    'not measured' become empty.
    """
    ignored = {settings.patient.lower(), *map(str.lower, settings.ignore)}
    cells: dict[str, Sequence[str]] = {
        name: column
        for name, column in table.columns.items()
        if name not in ignored and not is_unmistakable(name)
    }
    notes = []
    for name in (*settings.numbers, *(one for one in (settings.time, settings.event) if one)):
        column = table.columns[name.lower()]
        try:
            cells[name.lower()] = with_decimal_points(column, name)
        except DataError as error:
            raise DataError(f"{WHERE}: {error}") from None
        if cells[name.lower()] is not column:
            notes.append(DECIMAL_COMMAS.format(name=name))
    for name, stand_ins in settings.missing_values.items():
        words = [str(value) for value in stand_ins]
        cells[name.lower()] = [
            "" if any(_same_word(cell, word) for word in words) else cell for cell in cells[name.lower()]
        ]
    for name in _target_columns(settings):
        cells.setdefault(name.lower(), table.columns[name.lower()])
    return cells, notes


def _warnings(
    settings: Table,
    cells: Mapping[str, Sequence[str]],
    cases: Sequence[Case],
    arrays: tuple[NDArray[np.float64], NDArray[np.float32], NDArray[Any]],
) -> tuple[str, ...]:
    numbers, words, targets = arrays
    found = column_findings(settings, cells, numbers)
    predicted = targets.reshape(len(numbers), -1 if len(targets) else 0)
    everything = np.concatenate([numbers, words, predicted], axis=1, dtype=np.float64)
    found += duplicate_findings(everything, [case.split for case in cases])
    return tuple(found)


def column_findings(
    settings: Table, cells: Mapping[str, Sequence[str]], numbers: NDArray[np.float64]
) -> list[str]:
    """Return what is odd about columns of numbers (N, numeric features), whose cells are given by heading."""
    whole = (numbers == np.floor(numbers)) | np.isnan(numbers)
    found = identifier_findings(
        {
            name: cells[name.lower()]
            for name, is_whole in zip(settings.numbers, whole.T, strict=True)
            if is_whole.all()
        }
    )
    for name, column in zip(settings.numbers, numbers.T, strict=True):
        found += number_findings(name, column)
    return found


def _target_columns(settings: Table) -> list[str]:
    return [name for name in (settings.target, settings.time, settings.event) if name is not None]


def _read_row(
    line: int,
    patient: str,
    row: Mapping[str, str],
    numbers: Sequence[float] | None,
    request: _Request,
) -> _Row | Case:
    """Return one row, or its case if an empty cell drops it; its numbers are parsed here if they are None."""
    settings = request.settings
    identity = f"{patient}/{line}"
    token = case_token(request.site_secret, identity)
    try:
        inputs = row_inputs(row, numbers, settings)
        if inputs is None:
            return Case(identity, patient, token, image=())
        target = _target(row, settings, request.classes)
        split = parse_split(row.get(settings.split.lower(), ""))
    except DataError as error:
        raise DataError(f"{WHERE}, row {line} (case {token}): {error}") from None
    hidden = [name.lower() for name in _target_columns(settings)]
    case = Case(
        id=identity,
        patient=patient,
        token=token,
        image=(),
        target=target if isinstance(target, int) else None,
        split=split,
        attributes=MappingProxyType({name: cell for name, cell in row.items() if name not in hidden}),
    )
    return _Row(case, *inputs, target)


def row_inputs(
    row: Mapping[str, str], numbers: Sequence[float] | None, settings: Table
) -> tuple[Sequence[float], list[float]] | None:
    """Return a row's numbers, NaN where empty, and its words as 0 or 1; None if an empty cell drops it.

    The numbers are parsed here if they are None.

    Raises:
        DataError: naming the column of a cell that cannot be read.
    """
    if numbers is None:
        numbers = [_number(row[name.lower()], name) for name in settings.numbers]
    if settings.missing == "drop" and any(math.isnan(value) for value in numbers):
        return None
    words = [
        value
        for name, known in settings.categorical.items()
        for value in _one_hot(row[name.lower()], known, name)
    ]
    return numbers, words


def _target(row: Mapping[str, str], settings: Table, classes: int | None) -> int | tuple[float, float] | None:
    if settings.target is not None:
        target = parse_target(row[settings.target.lower()], settings.target)
        if classes is not None and target >= classes:
            raise DataError(
                f"column '{settings.target}' holds a class that the task, with {classes} classes, does not "
                "have"
            )
        return target
    if settings.time is not None and settings.event is not None:
        return _survival(row, settings.time, settings.event)
    return None


def parse_numbers(cells: Mapping[str, Sequence[str]], settings: Table) -> Iterable[Sequence[float] | None]:
    """Yield the numbers of each row at once, which is fast; None for each if a cell must be refused."""
    columns = [_parse_column(cells[name.lower()]) for name in settings.numbers]
    rows = len(next(iter(cells.values()), ()))
    if not columns or any(column is None for column in columns):
        return [None] * rows
    return zip(*(column for column in columns if column is not None), strict=True)


def _parse_column(cells: Sequence[str]) -> list[float] | None:
    """Return a column as numbers, or None if `_number` would refuse one of its cells."""
    text = "".join(cells)
    if "_" in text or not text.isascii():
        return None
    try:
        values = [float(cell) if cell and cell != "NA" else math.nan for cell in cells]
    except ValueError:
        try:
            values = [math.nan if cell.lower() in EMPTY_CELLS else float(cell) for cell in cells]
        except ValueError:
            return None
    odd = np.flatnonzero(~(np.abs(values) <= LARGEST))
    return values if all(cells[int(i)].lower() in EMPTY_CELLS for i in odd) else None


def _number(cell: str, column: str) -> float:
    if cell.lower() in EMPTY_CELLS:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    # Python also takes 1_000 and digits of other scripts, which nobody means.
    if math.isnan(value) or not (is_number(cell) or math.isinf(value)):
        raise DataError(
            f"column '{column}' holds no number; correct the cell, empty it, say in data.missing_values what "
            "stands for 'not measured', or list the column's words in data.categorical"
        )
    # The network's numbers are float32.
    if abs(value) > LARGEST:
        raise DataError(f"column '{column}' holds no finite number; correct the cell or empty it")
    return value


def _one_hot(cell: str, known: Sequence[str], column: str) -> list[float]:
    # Exact words first: 'none' may be one of them.
    matches = [cell == word for word in known]
    if not any(matches):
        # 1 and 1.0 are one category: some exports write every number with a decimal point.
        matches = [_same_word(cell, word) for word in known]
    if not any(matches) and cell.lower() not in EMPTY_CELLS:
        raise DataError(
            f"column '{column}' holds a word that data.categorical does not list; there are "
            f"{', '.join(known)}; correct the cell or list its word"
        )
    return [float(match) for match in matches]


def _same_word(cell: str, word: str) -> bool:
    try:
        return float(cell) == float(word)
    except ValueError:
        return cell.lower() == word.lower()


def _survival(row: Mapping[str, str], time: str, event: str) -> tuple[float, float]:
    duration = _number(row[time.lower()], time)
    happened = _number(row[event.lower()], event)
    if not duration >= 0:
        raise DataError(f"column '{time}' is empty or below 0; correct the cell or omit the row")
    if happened not in (0.0, 1.0):
        raise DataError(f"column '{event}' is neither 0 nor 1; correct the cell or omit the row")
    return duration, happened


def training_sums(rows: TableRows, features: tuple[str, ...], *, min_count: int = 10) -> harmonise.TableSums:
    """Return the sums of the training rows that ComBat needs from every hospital.

    Raises:
        DataError: for fewer than `min_count` training patients.
    """
    training = rows.in_split("train")
    patients = [case.patient for case in rows.index.split("train")]
    return harmonise.sums(rows.numbers[training], patients, features, min_count=min_count)


@dataclass(frozen=True, eq=False, repr=False)
class Scaling:
    """One median, centre and scale per numeric feature, from a site's own training rows; they stay there."""

    median: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]


def fit_scaling(rows: TableRows, settings: Table) -> tuple[Scaling, tuple[str, ...]]:
    """Return the site's medians, centres and scales, and notes on which rows they come from.

    A site that only evaluates has no training row; then the features of all its rows, without any target,
    are used.
    """
    training = rows.in_split("train")
    notes = []
    if not training.any():
        training[:] = True
        notes.append(
            "the table has no training row: medians and means come from the features of all its rows"
        )
    numbers = rows.numbers[training]
    empty = np.asarray(np.isnan(numbers).all(axis=0))
    notes += [
        f"column '{name}' is empty in every training row: it is a constant here"
        for name, is_empty in zip(settings.numbers, empty, strict=True)
        if is_empty
    ]
    median = np.array([np.median(x[~np.isnan(x)]) if not np.isnan(x).all() else 0.0 for x in numbers.T])
    if settings.standardise in ("fixed", "combat") and settings.plan == "given":
        median = np.where(empty, [settings.centre[name] for name in settings.numbers], median)
    return Scaling(median, *_centre_and_scale(numbers, median, settings)), tuple(notes)


def _centre_and_scale(
    numbers: NDArray[np.float64], median: NDArray[np.float64], settings: Table
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Nothing is scaled before the plan is made; these inputs are not trained on.
    if settings.plan != "given" or settings.standardise == "none":
        return np.zeros(numbers.shape[1]), np.ones(numbers.shape[1])
    if settings.standardise == "site":
        filled = np.where(np.isnan(numbers), median, numbers)
        centre, deviation = filled.mean(axis=0), filled.std(axis=0)
        largest = np.abs(filled).max(axis=0)
        return centre, np.where(deviation > CONSTANT * np.maximum(largest, 1.0), deviation, 1.0)
    centre = np.array([settings.centre[name] for name in settings.numbers])
    scale = np.array([settings.scale[name] for name in settings.numbers])
    return harmonise.combat(numbers, centre, scale) if settings.standardise == "combat" else (centre, scale)


def network_inputs(rows: TableRows, scaling: Scaling, settings: Table) -> NDArray[np.float32]:
    """Return the inputs (N, F): scaled numbers, with `indicate` which of them were empty, then words.

    Empty numbers are medians, or NaN with `missing: keep`.
    """
    empty = np.isnan(rows.numbers)
    filled = rows.numbers if settings.missing == "keep" else np.where(empty, scaling.median, rows.numbers)
    scaled = (filled - scaling.centre) / scaling.scale
    parts = [scaled, empty, rows.words] if settings.indicate else [scaled, rows.words]
    return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)


class TableDataset(Dataset[dict[str, Any]]):
    """The rows of one split as dictionaries.

    Keys: `features` (F,) float32; `target`, an int64 class, or time and event as float32; `case`, the token.
    """

    def __init__(self, features: NDArray[np.float32], targets: NDArray[Any], cases: Sequence[Case]) -> None:
        self.features = torch.as_tensor(features)
        self.targets = torch.as_tensor(targets)
        self.cases = tuple(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row: dict[str, Any] = {"features": self.features[item], "case": self.cases[item].token}
        if len(self.targets):
            row["target"] = self.targets[item]
        return row
