"""The two records of an evaluation: a `Row` may leave the hospital, a `CaseRow` never does.

A `Row` is about a group of patients: one metric of one model at one site. A `CaseRow` is about one case of
one patient, both named by tokens (salted hashes), and is read again by whoever wants another summary. Both
are stored as JSON lines, which are appended to while a run goes on, and as CSV for spreadsheets.

Appending is safe: a line that a killed process left half written is cut off before the next append and
skipped by a reader; the same row written twice, as a resumed run does, counts once, and the later value
holds.

>>> row = Row(round=3, site="west", split="test", model="federated", metric="dice", value=0.81, n=16)
>>> row.key == msgspec.structs.replace(row, value=0.5).key
True
"""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from medfed.errors import RunError

# The `site` of a row that pools several hospitals.
ALL_SITES = "all"

FEDERATED = "federated"
POOLED = "pooled"
UNTRAINED = "untrained"


def local(site: str) -> str:
    """Return the name of the model that `site` trained alone."""
    return f"local:{site}"


def personal(site: str) -> str:
    """Return the name of the model that `site` personalised."""
    return f"personal:{site}"


def without(site: str) -> str:
    """Return the name of the federated model that was trained without `site`."""
    return f"without:{site}"


def model_of(stem: str) -> str:
    """Return the model that a checkpoint's file name stands for: 'local-north' is 'local:north'."""
    for kind in ("local", "personal", "without"):
        if stem.startswith(f"{kind}-"):
            return f"{kind}:{stem.removeprefix(f'{kind}-')}"
    return stem


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of one model on one group of patients, with its interval.

    `site` is the hospital whose patients were measured, `ALL_SITES` for several; `model` says whose model it
    was: "federated", "local:<site>", "pooled", "untrained", "personal:<site>", "without:<site>". `n` counts
    patients. A `value` of None is always explained in `note`. `group` is a subgroup ("sex=F"); `against`
    names the other model where the value is a difference (model minus against), and `p` its test's p value,
    corrected as `method` says.
    """

    round: int
    site: str
    split: str
    model: str
    metric: str
    value: float | None
    n: int | None
    low: float | None = None
    high: float | None = None
    structure: str | None = None
    group: str | None = None
    against: str | None = None
    p: float | None = None
    method: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        _finite(self, ("value", "low", "high", "p"))
        if self.value is None and not self.note:
            raise ValueError(
                f"row {self.metric} of {self.model} at {self.site}: no value and no note that says why"
            )

    @property
    def key(self) -> tuple[object, ...]:
        """Return what the row is about, without what was found."""
        return (
            self.round,
            self.site,
            self.split,
            self.model,
            self.metric,
            self.structure,
            self.group,
            self.against,
        )


class CaseRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of one model on one case. It stays in the hospital.

    Segmentation: `metric` is dice, hd95_mm, ... and `structure` the class. Classification and tabular:
    `metric` is "probability", `structure` the class, `value` its probability and `target` 1.0 where the
    case is of that class, else 0.0. Survival: `metric` is "risk", `value` the predicted risk, `target` the
    time and `event` whether it happened; a predicted survival has metric "survival@<time>". `attributes`
    are what subgroups are made of. `condition` says how the case was changed before it was measured
    ("noise of 10 %"), and is None for a case as it is.
    """

    model: str
    site: str
    split: str
    case: str
    patient: str
    metric: str
    value: float | None
    structure: str | None = None
    target: float | None = None
    event: bool | None = None
    note: str | None = None
    attributes: dict[str, str] = {}
    condition: str | None = None

    def __post_init__(self) -> None:
        _finite(self, ("value", "target"))

    @property
    def key(self) -> tuple[object, ...]:
        """Return what the row is about, without what was found."""
        return (
            self.model,
            self.site,
            self.split,
            self.case,
            self.metric,
            self.structure,
            self.condition,
        )


Record = TypeVar("Record", Row, CaseRow)


def _finite(record: Any, names: tuple[str, ...]) -> None:
    # msgspec would write NaN as null, which would turn a failed metric into one that was never measured.
    for name in names:
        found = getattr(record, name)
        if found is not None and not math.isfinite(found):
            raise ValueError(
                f"row {record.metric} of {record.model}: {name} is {found}; give None and a note"
            )
        if found is not None and type(found) is not float:
            # numpy's numbers are floats to Python, but msgspec does not encode them.
            msgspec.structs.force_setattr(record, name, float(found))


def as_they_are(cases: Iterable[CaseRow]) -> list[CaseRow]:
    """Return the cases that were measured as they are; those that were changed before
    are about robustness alone.
    """
    return [case for case in cases if case.condition is None]


def append(path: Path, records: Iterable[Row | CaseRow]) -> None:
    """Add lines to a JSON lines file in one write, after cutting off a line that was left half written."""
    data = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
    with open(path, "ab+") as file:
        end = _whole(file)
        if end != file.seek(0, os.SEEK_END):
            file.truncate(end)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _whole(file: io.BufferedRandom) -> int:
    """Return the length of the file up to and with its last newline."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        step = min(position, 65536)
        file.seek(position - step)
        found = file.read(step).rfind(b"\n")
        if found >= 0:
            return position - step + found + 1
        position -= step
    return 0


def write(path: Path, records: Iterable[Row | CaseRow]) -> None:
    """Write a JSON lines file that a reader sees whole or not at all."""
    replace(path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path` by renaming a finished temporary file of the same folder."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON lines file, each key once, in the order of their first writing."""
    return _read(path, Row)


def read_cases(path: Path) -> list[CaseRow]:
    """Return the case rows of a JSON lines file, each key once, in the order of their first writing."""
    return _read(path, CaseRow)


def _read(path: Path, kind: type[Record]) -> list[Record]:
    decoder = msgspec.json.Decoder(kind)
    found: dict[tuple[object, ...], Record] = {}
    lines = path.read_bytes().split(b"\n")
    # What follows the last newline is empty, or a line whose writer was killed.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = decoder.decode(line)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RunError(
                f"{path.name}: line {number} is not a {kind.__name__}: {error}; restore the file"
            ) from error
        found[record.key] = record
    return list(found.values())


def write_csv(path: Path, records: Iterable[Record]) -> None:
    """Write rows or case rows as CSV; a case row's attributes become columns `attribute.<name>`."""
    flat = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for line in flat for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    replace(path, text.getvalue().encode())


def _flat(record: Row | CaseRow) -> dict[str, object]:
    line: dict[str, object] = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if name == "attributes":
            line.update({f"attribute.{key}": text for key, text in sorted(value.items())})
        elif isinstance(value, bool):
            line[name] = str(value).lower()
        else:
            line[name] = "" if value is None else value
    return line


def read_csv(path: Path, kind: type[Record]) -> list[Record]:
    """Return the records that `write_csv` wrote."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            _record(line, kind, path, number) for number, line in enumerate(csv.DictReader(file), start=2)
        ]


def _record(line: dict[str, str], kind: type[Record], path: Path, number: int) -> Record:
    fields: dict[str, object] = {}
    attributes = {}
    for name, text in line.items():
        if text != "" and name.startswith("attribute."):
            attributes[name.removeprefix("attribute.")] = text
        elif text != "":
            fields[name] = text
    for name in ("value", "n"):
        fields.setdefault(name, None)
    if kind is CaseRow:
        fields.pop("n")
        fields["attributes"] = attributes
    try:
        return msgspec.convert(fields, kind, strict=False)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RunError(
            f"{path.name}: line {number} is not a {kind.__name__}: {error}; restore the file"
        ) from error
