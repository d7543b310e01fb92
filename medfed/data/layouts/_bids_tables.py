"""The tables beside the images of a BIDS data set: participants.tsv and dseg.tsv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfed.data.csv_table import EMPTY_CELLS, read_rows
from medfed.data.layouts._survey import Survey
from medfed.data.table_file import PARTICIPANTS_FILE
from medfed.errors import DataError

SUBJECT = "participant_id"
LABEL_TABLE = "dseg.tsv"


@dataclass(frozen=True, repr=False)
class Participants:
    """What participants.tsv says of each subject, by its label without `sub-`; notes that may be printed."""

    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    read: tuple[Path, ...] = ()

    def targets(self, column: str) -> tuple[dict[str, int], tuple[str, ...]]:
        """Return each subject's class by a column, and the classes' names unless the column numbers them.

        Raises:
            DataError: if there is no such column, or its cells are no classes.
        """
        name = column.lower()
        if name not in self.columns:
            raise DataError(
                f"layout: `target` names no column of {PARTICIPANTS_FILE}, which has {len(self.columns)} "
                "columns beside participant_id; correct it"
            )
        cells = {subject: row[name] for subject, row in self.rows.items() if name in row}
        words = sorted(set(cells.values()))
        if len(words) < 2 or len(words) > max(2, len(cells) // 2):
            raise DataError(
                f"layout: the column of {PARTICIPANTS_FILE} that `target` names has {len(words)} different "
                f"values for {len(cells)} subjects, which are no classes; name a column of classes"
            )
        if all(word.isascii() and word.isdigit() for word in words):
            return {subject: int(cell) for subject, cell in cells.items()}, ()
        return {subject: words.index(cell) for subject, cell in cells.items()}, tuple(words)


def read_participants(survey: Survey, *, needed: bool) -> Participants:
    """Return what participants.tsv says; a table that cannot be read is noted unless it is needed.

    Cells without a value, such as `n/a`, are left out.

    Raises:
        DataError: if it is needed and not there or unreadable.
    """
    file = survey.named(PARTICIPANTS_FILE)
    if file is None:
        if needed:
            raise DataError(f"layout: `target` is a column of {PARTICIPANTS_FILE}, which is not there")
        return Participants()
    try:
        return _read(file.path)
    except DataError as error:
        if needed:
            raise
        note = f"{PARTICIPANTS_FILE} is not used, as it cannot be read: {error}"
        return Participants(notes=(note,), read=(file.path,))


def _read(path: Path) -> Participants:
    rows = read_rows(path, PARTICIPANTS_FILE)
    columns = next(rows)[1]
    if SUBJECT not in columns:
        raise DataError(f"{PARTICIPANTS_FILE} has no column '{SUBJECT}'; add it, or remove the file")
    found: dict[str, dict[str, str]] = {}
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        subject = row.pop(SUBJECT).removeprefix("sub-")
        if subject in found:
            raise DataError(
                f"{PARTICIPANTS_FILE} row {number} is of a subject that has another row; keep one"
            )
        found[subject] = {name: cell for name, cell in row.items() if cell.lower() not in EMPTY_CELLS}
    return Participants(found, tuple(name for name in columns if name != SUBJECT), (), (path,))


def read_label_tables(survey: Survey) -> tuple[dict[int, str], tuple[Path, ...]]:
    """Return what the label tables (`*dseg.tsv`, columns index and name) say of numbers, and their paths.

    Only those at the top and directly below derivatives/ or one of its pipelines are of all labels.

    Raises:
        DataError: if two tables, or two rows, name one number differently.
    """
    files = [file for file in survey.files if file.name.endswith(LABEL_TABLE) and _is_of_all(file.parts)]
    names: dict[int, str] = {}
    for file in files:
        rows = read_rows(file.path, "the label table dseg.tsv")
        columns = next(rows)[1]
        if not {"index", "name"} <= set(columns):
            raise DataError("the label table dseg.tsv has no columns 'index' and 'name'; add them")
        for number, cells in rows:
            row = dict(zip(columns, cells, strict=True))
            index, name = row["index"], row["name"]
            if not (index.isascii() and index.isdigit()) or not name:
                raise DataError(f"the label table dseg.tsv row {number} gives no number its name; correct it")
            if names.setdefault(int(index), name) != name:
                raise DataError(
                    f"the label tables (dseg.tsv) give the number {int(index)} two names; keep one table, or "
                    "make them agree"
                )
    return dict(sorted(names.items())), tuple(file.path for file in files)


def _is_of_all(parts: Sequence[str]) -> bool:
    return len(parts) == 1 or (len(parts) <= 3 and parts[0] == "derivatives")
