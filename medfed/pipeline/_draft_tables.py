"""The draft of a study of tables: the columns to predict, and the columns that all hospitals have.

A column that identifies patients is never drafted as a feature, and no cell is written into the study except
words that at least `MIN_PATIENTS` patients share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medfed.data.identifiers import MEANINGS, Kind, kind_by_cells, kind_by_heading, shown_heading
from medfed.data.patients import DEFAULT_COLUMN, patients_of
from medfed.data.site_table import (
    SiteTable,
    filled_cells,
    is_empty,
    is_number,
    open_table,
    with_decimal_points,
)
from medfed.data.table_file import find_table, is_table
from medfed.data.table_findings import number_findings
from medfed.errors import DataError, StudyError
from medfed.pipeline._codes import are_codes
from medfed.pipeline._draft import Draft, yaml_inline
from medfed.wire.templates import render

# A column with more different words than this is free text, or names, and not a category.
MAX_CATEGORIES = 12
# A word is written into the study only if at least this many patients of all hospitals have it.
MIN_PATIENTS = 10
# More classes than this are no classes.
MAX_CLASSES = 100
# Columns that say which split a row is in.
SPLIT = "split"

# Site -> its table.
Tables = Mapping[str, SiteTable]


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


@dataclass
class DraftColumns:
    """The columns that the draft learns from, and what a person should look at.

    categories: the words of a column of words.  codes: the columns of numbers that are taken for codes.
    """

    features: list[str] = field(default_factory=list)
    categories: dict[str, list[str]] = field(default_factory=dict)
    codes: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)


def table_file(path: Path) -> Path | None:
    """Return the table that a path is or that is alone in a folder; None for a folder of images."""
    return find_table(path) if is_table(path) else None


def draft_tables(paths: Mapping[str, Path], answers: TargetColumns) -> Draft:
    """Return the draft of a study of these hospitals' tables.

    Raises:
        DataError: if a table can't be read.
        StudyError: if it is not clear what to predict, or no column is left to learn from.
    """
    tables = {site: _read_table(site, path, answers) for site, path in paths.items()}
    first = next(iter(tables.values()))
    shared = [name for name in first.columns if all(name in one.columns for one in tables.values())]
    _check_answers(answers, tables, shared)
    patients = {site: patients_of(one.columns, one.lines, DEFAULT_COLUMN)[0] for site, one in tables.items()}
    columns = DraftColumns()
    for name in shared:
        if name not in (*answers.names, SPLIT):
            add_column(name, tables, patients, columns)
    elsewhere = sorted(
        {name for one in tables.values() for name in one.columns if _kind(name, {"": one}) is None}
        - set(shared)
    )
    if elsewhere:
        columns.warnings.append(f"not at every hospital, and left out: {', '.join(elsewhere)}")
    if not columns.features:
        raise StudyError(f"no column is left to learn from: {'; '.join(columns.warnings)}")
    for site, one in tables.items():
        notes = (*one.notes, *patients_of(one.columns, one.lines, DEFAULT_COLUMN)[1])
        columns.warnings += [f"{site}: {note}" for note in notes]
    summaries = [
        f"{site}: a table, {len(one.lines)} rows of {len(set(patients[site]))} patients"
        for site, one in tables.items()
    ]
    return Draft(_text(answers, tables, columns), tuple(summaries), tuple(columns.warnings))


def _check_answers(answers: TargetColumns, tables: Tables, shared: list[str]) -> None:
    """Raise StudyError unless the columns to predict are given and every hospital has them."""
    named = ", ".join(name for name in shared if _kind(name, tables) is None)
    if not answers.is_complete:
        raise StudyError(
            "it is not clear what to learn from a table: give --target COLUMN, or --time COLUMN and --event "
            f"COLUMN; all hospitals have {named}"
        )
    for name in answers.names:
        lacking = [site for site, one in tables.items() if name not in one.columns]
        if lacking:
            raise StudyError(f"{', '.join(lacking)}: no column '{name}'; all hospitals have {named}")


def add_column(name: str, tables: Tables, patients: Mapping[str, list[str]], columns: DraftColumns) -> None:
    """Add a column to the features, or a warning why it is none."""
    kind = _kind(name, tables)
    if kind is not None:
        shown = shown_heading(name, next(iter(tables.values())).positions[name])
        column = shown if shown.isdigit() else f"'{shown}'"
        use = ", and keeps a patient's rows in one split" if kind == "patient" else ""
        columns.warnings.append(f"column {column} was left out{use}: it holds {MEANINGS[kind]}")
        return
    held: dict[str, set[tuple[str, str]]] = {}
    for site, one in tables.items():
        cells = _cells(site, one, name)
        words = set(filled_cells(cells))
        for cell, patient in zip(cells, patients[site], strict=True):
            if cell in words:
                held.setdefault(cell, set()).add((site, patient))
    if not held:
        columns.warnings.append(f"column '{name}' is empty and was left out")
        return
    few = [word for word, whose in held.items() if len(whose) < MIN_PATIENTS]
    if all(map(is_number, held)):
        _add_numbers(name, held, few, tables, columns)
    elif (len(held) > MAX_CATEGORIES or few) and (mixed := _word_among_numbers(name, tables)):
        columns.warnings.append(mixed)
    elif len(held) > MAX_CATEGORIES:
        columns.warnings.append(f"column '{name}' holds {len(held)} different words and was left out")
    elif few:
        columns.warnings.append(
            f"column '{name}' was left out: {len(few)} of its {len(held)} words are held by fewer than "
            f"{MIN_PATIENTS} patients, and are not copied; to learn from it, add it to data.features and "
            f"list its words in data.categorical.{name} by hand"
        )
    else:
        columns.features.append(name)
        columns.categories[name] = sorted(held)


def _word_among_numbers(name: str, tables: Tables) -> str:
    """Return where a column of mostly numbers holds the first other cell, or '' if it is mostly words."""
    words = [
        (site, line)
        for site, one in tables.items()
        for line, cell in zip(one.lines, one.columns[name], strict=True)
        if not is_empty(cell) and not is_number(cell.replace(",", ".", 1))
    ]
    filled = sum(not is_empty(cell) for one in tables.values() for cell in one.columns[name])
    if not words or 2 * len(words) > filled:
        return ""
    site, line = words[0]
    return (
        f"column '{name}' was left out: {len(words)} of its {filled} filled cells are no numbers, the first "
        f"of them in row {line} of {site}'s table; correct them, say in data.missing_values.{name} what "
        f"stands for 'not measured', or list all words in data.categorical.{name}, and add the column to "
        "data.features"
    )


def _add_numbers(
    name: str, held: Mapping[str, object], few: list[str], tables: Tables, columns: DraftColumns
) -> None:
    """Add a column of numbers, as categories if they look like codes."""
    columns.features.append(name)
    values = sorted({float(cell) for cell in held})
    if are_codes(name, values):
        if not few:
            columns.categories[name] = [f"{value:g}" for value in values]
            columns.codes.add(name)
            columns.warnings.append(
                f"column '{name}' holds {len(values)} whole numbers, which were taken for codes "
                "(data.categorical); if they are amounts or grades, remove it there"
            )
        else:
            columns.warnings.append(
                f"column '{name}' holds {len(values)} whole numbers and was taken for an amount; if they "
                f"are codes, list them in data.categorical.{name}"
            )
    for site, one in tables.items():
        cells = _cells(site, one, name)
        numbers = np.array([np.nan if is_empty(cell) else float(cell) for cell in cells])
        columns.warnings += [f"{site}: {finding}" for finding in number_findings(name, numbers)]


def _cells(site: str, table: SiteTable, name: str) -> Sequence[str]:
    """Return a column with decimal points."""
    try:
        return with_decimal_points(table.columns[name], name)
    except DataError as error:
        raise DataError(f"{site}'s table: {error}") from None


def _kind(name: str, tables: Tables) -> Kind | None:
    """Return what a column identifies, by its heading or by the cells of any hospital."""
    if name == SPLIT:
        return None
    kinds = [kind_by_heading(name), *(kind_by_cells(one.columns.get(name, ())) for one in tables.values())]
    return next((kind for kind in kinds if kind is not None), None)


def _classes(tables: Tables, target: str) -> list[str]:
    cells = {cell for one in tables.values() for cell in one.columns[target] if not is_empty(cell)}
    whole = all(is_number(cell) and float(cell).is_integer() and float(cell) >= 0 for cell in cells)
    numbers = {int(float(cell)) for cell in cells} if whole else set()
    if not numbers or numbers == {0} or max(numbers) >= MAX_CLASSES:
        raise StudyError(
            f"column '{target}' does not hold classes 0, 1, ...: it has {len(cells)} different values"
            f"{', all 0' if numbers == {0} else ''}, and classes are at least two whole numbers from 0 to "
            f"{MAX_CLASSES - 1}{_first_no_class(tables, target)}; number the classes"
        )
    return [f"class{number}" for number in range(max(numbers) + 1)]


def _first_no_class(tables: Tables, target: str) -> str:
    """Return where the first cell that is no class is, if a word or fraction stands among whole numbers."""
    lines = [
        (site, line, is_number(cell) and float(cell).is_integer() and 0 <= float(cell) < MAX_CLASSES)
        for site, one in tables.items()
        for line, cell in zip(one.lines, one.columns[target], strict=True)
        if not is_empty(cell)
    ]
    others = [(site, line) for site, line, is_class in lines if not is_class]
    if not others or 2 * len(others) > len(lines):
        return ""
    site, line = others[0]
    return f" ({len(others)} cells hold something else, the first in row {line} of {site}'s table)"


def _text(answers: TargetColumns, tables: Tables, columns: DraftColumns) -> str:
    is_survival = answers.target is None
    keys = ("time", "event") if is_survival else ("target",)
    return render(
        Path(__file__).with_name("draft_table.yaml.jinja"),
        task="survival" if is_survival else "tabular",
        classes="" if is_survival else yaml_inline(_classes(tables, answers.names[0])),
        targets={key: yaml_inline([name])[1:-1] for key, name in zip(keys, answers.names, strict=True)},
        features=yaml_inline(columns.features),
        categories={
            yaml_inline([name])[1:-1]: (yaml_inline(words), name in columns.codes)
            for name, words in columns.categories.items()
        },
    )


def _read_table(site: str, path: Path, answers: TargetColumns) -> SiteTable:
    try:
        # A target that is not there is told later, with the columns that all hospitals have.
        table = open_table(path, where=f"{site}'s table", known=answers.names)
    except OSError:
        raise DataError(f"{site}: its table can't be read; give a file that this account may read") from None
    if not table.lines:
        raise DataError(f"{site}: its table has no row below the column names")
    doubled = [name for name, count in Counter(answers.names).items() if count > 1]
    if doubled:
        raise StudyError(f"'{doubled[0]}' is given twice as a column to predict; give two columns")
    return table
