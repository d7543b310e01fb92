"""A hospital's table: rows of a CSV file to inputs of a network.

Everything that is computed from the rows (medians, means, deviations) comes from the site's own training rows
and stays there. A cell is refused rather than guessed: a word where a number belongs names its row and
column, never the cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medfed.data.harmonise import combat
from medfed.data.index import Case, Index, check_cases
from medfed.data.layouts.cases_csv import check_columns, read_rows, read_split, read_target
from medfed.data.settings import Table
from medfed.data.splits import assign_splits, case_token
from medfed.errors import DataError

# A cell that says 'not measured' in the ways that hospitals' exports do.
EMPTY_CELLS = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "."})

# Deviations smaller than this, as a part of the largest number, are rounding: the column is constant.
CONSTANT = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class TableRows:
    """A table's rows in the index's order, before anything is computed from them.

    numbers: (N, numeric features) float64, NaN where empty.  words: (N, words of all categorical features) of
    0 and 1.
    answers: (N,) int64 classes, or (N, 2) float32 of time and event.
    """

    index: Index
    numbers: NDArray[np.float64]
    words: NDArray[np.float32]
    answers: NDArray


def read_table(
    path: str | Path, settings: Table, *, site_secret: bytes, classes: int | None = None
) -> TableRows:
    """Return the rows of a site's CSV file, checked; `path` is the file, or a folder that holds just one.

    Raises:
        DataError: naming row and column, or the column that is missing.
    """
    where = "the site's table"
    rows = read_rows(_file(Path(path)), where)
    columns = next(rows)[1]
    answered = [name.lower() for name in (settings.target, settings.time, settings.event) if name is not None]
    check_columns(columns, [*dict.fromkeys(name.lower() for name in settings.features), *answered], where)
    cases: list[Case] = []
    numbers: list[list[float]] = []
    words: list[list[float]] = []
    answers: list[int | tuple[float, float]] = []
    for line, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        # A file without a patient column has a patient a row.
        patient = row.get(settings.patient.lower()) or f"row {line}"
        identity = f"{patient}/{line}"
        token = case_token(site_secret, identity)
        at = f"{where}, row {line} (case {token})"
        values = [_number(row[name.lower()], f"{at}: column '{name}'") for name in settings.numbers]
        if settings.missing == "drop" and any(math.isnan(value) for value in values):
            continue
        numbers.append(values)
        words.append(
            [
                x
                for name, known in settings.categorical.items()
                for x in _words(row[name.lower()], known, f"{at}: column '{name}'")
            ]
        )
        target = None
        if settings.target is not None:
            target = read_target(row[settings.target.lower()], at, settings.target)
            if classes is not None and target >= classes:
                raise DataError(
                    f"{at}: column '{settings.target}' holds a class that the task, with {classes} "
                    "classes, does not have"
                )
            answers.append(target)
        elif settings.time is not None and settings.event is not None:
            answers.append(_survival(row[settings.time.lower()], row[settings.event.lower()], settings, at))
        cases.append(
            Case(
                id=identity,
                patient=patient,
                token=token,
                image=(),
                target=target,
                split=read_split(row.get(settings.split.lower(), ""), at),
                attributes=MappingProxyType({k: v for k, v in row.items() if k not in answered}),
            )
        )
    if not cases:
        raise DataError(
            f"{where} has no row to learn from"
            + ("; every row had an empty cell, see data.missing" if settings.missing == "drop" else "")
        )
    split = assign_splits(cases, site_secret, settings.fractions)
    check_cases(split)
    dtype = np.float32 if settings.time else np.int64
    count = len(cases)
    return TableRows(
        Index(Path(path), "a table", split),
        np.array(numbers, np.float64).reshape(count, -1),
        np.array(words, np.float32).reshape(count, -1),
        np.array(answers, dtype),
    )


def _file(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.csv"))
        if len(found) != 1:
            raise DataError(
                f"the site's data folder holds {len(found)} CSV files, one is due; name the file in the "
                "site's `data`"
            )
        return found[0]
    if not path.is_file():
        raise DataError("the site's table is not there; set the site's `data` to the CSV file")
    return path


def _number(cell: str, at: str) -> float:
    if cell.lower() in EMPTY_CELLS:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        raise DataError(
            f"{at} holds no number; correct the cell, empty it, or list the column's words in "
            "data.categorical"
        ) from None
    if not math.isfinite(value):
        raise DataError(f"{at} holds no finite number; correct the cell or empty it")
    return value


def _words(cell: str, known: Sequence[str], at: str) -> list[float]:
    # First the words: 'none' may be one of them.
    found = [1.0 if cell == word else 0.0 for word in known]
    if not any(found):
        # 1 and 1.0 are one category: some exports write every number with a decimal point.
        found = [1.0 if _alike(cell, word) else 0.0 for word in known]
    if not any(found) and cell.lower() not in EMPTY_CELLS:
        raise DataError(
            f"{at} holds a word that data.categorical does not list; there are {', '.join(known)}; correct "
            "the cell or list its word"
        )
    return found


def _alike(cell: str, word: str) -> bool:
    try:
        return float(cell) == float(word)
    except ValueError:
        return cell.lower() == word.lower()


def _survival(time: str, event: str, settings: Table, at: str) -> tuple[float, float]:
    duration = _number(time, f"{at}: column '{settings.time}'")
    happened = _number(event, f"{at}: column '{settings.event}'")
    if not duration >= 0:
        raise DataError(
            f"{at}: column '{settings.time}' is empty or below 0; correct the cell or leave the row out"
        )
    if happened not in (0.0, 1.0):
        raise DataError(
            f"{at}: column '{settings.event}' is neither 0 nor 1; correct the cell or leave the row out"
        )
    return duration, happened


@dataclass(frozen=True, eq=False, repr=False)
class Scaling:
    """What a site computed from its own training rows, a number a numeric feature; it stays there."""

    median: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]


def fit_scaling(rows: TableRows, settings: Table) -> tuple[Scaling, tuple[str, ...]]:
    """Return the site's medians, centres and scales, and notes on what they rest on.

    A site that only evaluates has no training row; its own rows' features, without any target, then stand in.
    """
    training = np.array([case.split == "train" for case in rows.index.cases])
    notes = []
    if not training.any():
        training[:] = True
        notes.append(
            "the table has no training row: medians and means come from the features of all its rows"
        )
    numbers = rows.numbers[training]
    empty = np.isnan(numbers).all(axis=0)
    for name in (name for name, nothing in zip(settings.numbers, empty, strict=True) if nothing):
        notes.append(f"column '{name}' is empty in every training row: it is a constant here")
    median = np.array([np.median(x[~np.isnan(x)]) if not np.isnan(x).all() else 0.0 for x in numbers.T])
    if settings.plan != "given":
        # Before the plan is made nothing is scaled; nobody trains on this.
        centre, scale = np.zeros(numbers.shape[1]), np.ones(numbers.shape[1])
    elif settings.standardise in ("fixed", "combat"):
        centre = np.array([settings.centre[name] for name in settings.numbers])
        scale = np.array([settings.scale[name] for name in settings.numbers])
        median = np.where(empty, centre, median)
        if settings.standardise == "combat":
            centre, scale = combat(numbers, centre, scale)
    elif settings.standardise == "site":
        filled = np.where(np.isnan(numbers), median, numbers)
        centre, deviation = filled.mean(axis=0), filled.std(axis=0)
        largest = np.abs(filled).max(axis=0)
        scale = np.where(deviation > CONSTANT * np.maximum(largest, 1.0), deviation, 1.0)
    else:
        centre, scale = np.zeros(numbers.shape[1]), np.ones(numbers.shape[1])
    return Scaling(median, centre, scale), tuple(notes)


def inputs(rows: TableRows, scaling: Scaling, settings: Table) -> NDArray[np.float32]:
    """Return (N, F): the numbers filled and scaled, with `indicate` which were empty, then the words."""
    empty = np.isnan(rows.numbers)
    scaled = (np.where(empty, scaling.median, rows.numbers) - scaling.centre) / scaling.scale
    parts = [scaled, empty, rows.words] if settings.indicate else [scaled, rows.words]
    return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)


class TableDataset(Dataset):
    """TableRows of one split: `features` (F,) float32, `target` (an int64 class, or time and event as float32),
    `case`.
    """

    def __init__(self, features: NDArray[np.float32], answers: NDArray, cases: Sequence[Case]) -> None:
        self.features = torch.as_tensor(features)
        self.answers = torch.as_tensor(answers)
        self.cases = tuple(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: int) -> dict[str, object]:
        found: dict[str, object] = {"features": self.features[item], "case": self.cases[item].token}
        if len(self.answers):
            found["target"] = self.answers[item]
        return found
