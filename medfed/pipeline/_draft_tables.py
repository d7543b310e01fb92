"""The draft of a study of tables: the columns to predict, and the columns that all hospitals have."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.data.csv_table import read_rows
from medfed.data.layouts._files import visible
from medfed.errors import DataError, StudyError
from medfed.pipeline._draft import Draft, yaml_inline
from medfed.pipeline.templates import render

# A column with more different words than this is free text, or names, and not a category.
MAX_CATEGORIES = 12
# Columns that identify a patient, a row or its split; they are never features.
IDENTIFIERS = ("patient", "case", "id", "split")

# Site -> column -> cells.
Columns = Mapping[str, Mapping[str, list[str]]]
# Column to learn from -> its categories; none for a column of numbers.
Features = Mapping[str, list[str]]


@dataclass(frozen=True)
class TargetColumns:
    """The columns to predict from tables: the class, or time and event of a survival study."""

    target: str | None = None
    time: str | None = None
    event: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns that are given, in lower case as tables are read."""
        return [name.lower() for name in (self.target, self.time, self.event) if name is not None]

    @property
    def is_complete(self) -> bool:
        """Whether either a target, or time and event are given."""
        return (self.time is None) == (self.event is None) and (self.target is None) != (self.time is None)


def table_file(path: Path) -> Path | None:
    """Return the CSV file that a path is or that is alone in a folder; None for a folder of images."""
    if path.is_file():
        return path
    if path.is_dir() and not (path / "cases.csv").exists():
        files = visible(path)
        if len(files) == 1 and files[0].suffix.lower() in (".csv", ".tsv"):
            return files[0]
    return None


def draft_tables(paths: Mapping[str, Path], answers: TargetColumns) -> Draft:
    """Return the draft of a study of these hospitals' tables.

    Raises:
        DataError: if a table can't be read.
        StudyError: if it is not clear what to predict, or no column is left to learn from.
    """
    columns = {site: _read_columns(site, path) for site, path in paths.items()}
    first = next(iter(columns.values()))
    shared = [name for name in first if all(name in one for one in columns.values())]
    _check_answers(answers, columns, shared)
    candidates = [name for name in shared if name not in (*answers.names, *IDENTIFIERS)]
    features, warnings = _features(columns, candidates)
    elsewhere = sorted({name for one in columns.values() for name in one} - set(shared))
    if elsewhere:
        warnings.append(f"not at every hospital, and left out: {', '.join(elsewhere)}")
    if not features:
        raise StudyError(f"no column is left to learn from: {'; '.join(warnings)}")
    summaries = [
        f"{site}: a table, {len(next(iter(one.values()), []))} rows" for site, one in columns.items()
    ]
    return Draft(_text(answers, columns, features), tuple(summaries), tuple(warnings))


def _check_answers(answers: TargetColumns, columns: Columns, shared: list[str]) -> None:
    """Raise StudyError unless the columns to predict are given and every hospital has them."""
    if not answers.is_complete:
        raise StudyError(
            "it is not clear what to learn from a table: give --target COLUMN, or --time COLUMN and --event "
            f"COLUMN; all hospitals have {', '.join(shared)}"
        )
    for name in answers.names:
        lacking = [site for site, one in columns.items() if name not in one]
        if lacking:
            raise StudyError(
                f"{', '.join(lacking)}: no column '{name}'; all hospitals have {', '.join(shared)}"
            )


def _features(columns: Columns, candidates: list[str]) -> tuple[Features, list[str]]:
    """Return the columns of numbers and of few different words, and a warning for each other column."""
    features: dict[str, list[str]] = {}
    warnings: list[str] = []
    for name in candidates:
        cells = _cells(columns, name)
        if all(map(_is_number, cells)):
            features[name] = []
        elif len(cells) <= MAX_CATEGORIES:
            features[name] = sorted(cells)
        else:
            warnings.append(f"column '{name}' holds {len(cells)} different words and was left out")
    return features, warnings


def _cells(columns: Columns, name: str) -> set[str]:
    """Return the different non-empty cells of a column over all hospitals."""
    return {cell for one in columns.values() for cell in one[name] if cell}


def _classes(columns: Columns, target: str) -> list[str]:
    cells = _cells(columns, target)
    if not all(cell.isdigit() for cell in cells) or cells == {"0"} or not cells:
        raise StudyError(
            f"column '{target}' does not hold classes 0, 1, ...: it has {len(cells)} different values, not "
            "all of them whole numbers from 0; number the classes"
        )
    return [f"class{number}" for number in range(max(map(int, cells)) + 1)]


def _text(answers: TargetColumns, columns: Columns, features: Features) -> str:
    is_survival = answers.target is None
    keys = ("time", "event") if is_survival else ("target",)
    return render(
        "draft_table.yaml.jinja",
        task="survival" if is_survival else "tabular",
        classes="" if is_survival else yaml_inline(_classes(columns, answers.names[0])),
        targets=dict(zip(keys, answers.names, strict=True)),
        features=yaml_inline(list(features)),
        categories={name: yaml_inline(words) for name, words in features.items() if words},
    )


def _read_columns(site: str, path: Path) -> dict[str, list[str]]:
    file = table_file(path)
    assert file is not None
    try:
        rows = [cells for _, cells in read_rows(file, f"{site}'s table")]
    except (OSError, csv.Error):
        raise DataError(
            f"{site}: its table can't be read; give a CSV file whose first line holds the column names"
        ) from None
    if len(rows) < 2:
        raise DataError(f"{site}: its table has no row below the column names")
    return {name: [row[number].strip() for row in rows[1:]] for number, name in enumerate(rows[0])}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
