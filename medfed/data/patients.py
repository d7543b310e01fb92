"""Which rows of a table belong to one patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from medfed.data.case import Case
from medfed.data.identifiers import PLACEHOLDERS, kind_by_heading, patient_key

# The column of `data.patient` if a study does not name one.
DEFAULT_COLUMN = "patient"

# Headings of ids that are often those of patients; they group rows where no heading says "patient".
_OFTEN_PATIENTS = frozenset(
    {"id", "ids", "identifier", "uid", "uuid", "guid", "caseid", "caseno", "casenr", "casenumber",
     "fallnummer", "fallnr", "fallid"}
)  # fmt: skip
# With fewer ids than this share of the rows, such a column counts something else, such as hospitals.
MIN_IDS_SHARE = 0.02

NO_COLUMN = (
    "no column tells patients apart: each row counts as a patient of its own; if patients have several rows, "
    "name the column with their ids in data.patient"
)
ALL_ALIKE = (
    "the column with the patients' ids holds the same in every row, so each row counts as a patient of its "
    "own; if patients have several rows, name another column in data.patient"
)
NOT_STATED = "rows without a patient's id count as patients of their own"
RECOGNISED = (
    "rows of one patient are kept in one split, by the column with the patients' ids; it is not learned from"
)
SEVERAL = (
    "rows of one patient are kept in one split, by {count} columns with patients' ids: rows that share an "
    "id are of one patient; they are not learned from"
)


def patients_of(
    columns: Mapping[str, Sequence[str]], lines: Sequence[int], named: str
) -> tuple[list[str], tuple[str, ...]]:
    """Return the patient of each row, and notes on how they were told apart.

    Args:
        columns: the cells by heading, in lower case.
        lines: the row numbers, which name rows without an id.
        named: the column that the study names; if the table lacks it, every column whose heading says that
            it holds patients' ids is used.
    """
    own = [f"row {line}" for line in lines]
    named = named.lower()
    headings = [named] if named in columns else patient_columns(columns)
    headings = headings or [heading for heading in columns if _may_be_patients(heading, columns[heading])]
    if not headings:
        return own, (NO_COLUMN,)
    ids = [list(map(patient_key, columns[heading])) for heading in headings]
    useful = [cells for cells in ids if len(lines) < 2 or len(set(cells)) > 1]
    if not useful:
        return own, (ALL_ALIKE,)
    if len(useful) > 1:
        return _joined(useful, own), (SEVERAL.format(count=len(useful)),)
    cells = useful[0]
    stated = [cell.lower() not in PLACEHOLDERS for cell in cells]
    patients = [cell if known else row for cell, known, row in zip(cells, stated, own, strict=True)]
    notes = () if named in columns else (RECOGNISED,)
    return patients, notes if all(stated) else (*notes, NOT_STATED)


def _may_be_patients(heading: str, cells: Sequence[str]) -> bool:
    word = "".join(character for character in heading if character.isalnum())
    return word in _OFTEN_PATIENTS and len(set(cells)) >= max(2, MIN_IDS_SHARE * len(cells))


def patient_columns(headings: Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
    """Return the headings that say that their column holds patients' ids."""
    return [heading for heading in headings if kind_by_heading(heading) == "patient"]


def classes_note(cases: Iterable[Case]) -> tuple[str, ...]:
    """Return the note that is due if patients have cases of different classes."""
    targets: dict[str, set[int]] = defaultdict(set)
    for case in cases:
        if case.target is not None:
            targets[case.patient].add(case.target)
    several = sum(len(found) > 1 for found in targets.values())
    if not several:
        return ()
    whose = "1 patient has" if several == 1 else f"{several} patients have"
    return (
        f"{whose} cases of different classes; results count a patient once, by those of the highest class",
    )


def _joined(columns: Sequence[Sequence[str]], own: Sequence[str]) -> list[str]:
    """Return one name per group of rows that share an id in any of the columns (connected components).

    The name is the smallest id of the group, so that it does not depend on the order of the rows.
    """
    parent = {row: row for row in own}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for number, cells in enumerate(columns):
        for row, cell in zip(own, cells, strict=True):
            if cell.lower() not in PLACEHOLDERS:
                one, other = root(parent.setdefault(f"{number}/{cell}", f"{number}/{cell}")), root(row)
                parent[max(one, other)] = min(one, other)
    return [root(row) for row in own]
