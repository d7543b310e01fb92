"""The records of an evaluation: a `Row` may leave the hospital, a `CaseRow` never does.

A `Row` describes a group of patients: one metric of one model at one site. A `CaseRow` describes one case of
one patient, both identified by tokens (salted hashes); all summaries are computed from case rows. Both are
stored as JSON lines, to which a run appends; rows are also written as CSV for spreadsheets.

Appending is safe: readers skip a line that a killed process left unfinished, and the next append removes it.
If a row is written twice, for example by a resumed run, the later value replaces the earlier one.

>>> row = Row(round=3, site="west", split="test", model="federated", metric="dice", value=0.81, n=16)
>>> row.key == msgspec.structs.replace(row, value=0.5).key
True
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from medfed.errors import DECODING_ERRORS, RunError
from medfed.files import write_whole
from medfed.wire.untrusted_text import for_cell

# The `site` of a row over several pooled hospitals.
ALL_SITES = "all"

# The `site` of a row that holds at each hospital of the study, such as the least of their thresholds.
EVERY_SITE = "each hospital"

# The `site` of a row that is the mean of the hospitals' own values, each counting alike.
SITE_MEAN = "mean of hospitals"

FEDERATED = "federated"
POOLED = "pooled"
UNTRAINED = "untrained"

# The kinds of models of which a run may have several, each with the hospital or the seed in its name.
KINDS = ("local", "personal", "without", "seed")

# Functions that return the fields which identify a row.
_ROW_KEY = attrgetter("round", "site", "split", "model", "metric", "structure", "group", "against")
_CASE_KEY = attrgetter("model", "site", "split", "case", "metric", "structure", "condition")


def local(site: str) -> str:
    """Return the name of the model trained by `site` alone."""
    return f"local:{site}"


def personal(site: str) -> str:
    """Return the name of the model personalised by `site`."""
    return f"personal:{site}"


def without(site: str) -> str:
    """Return the name of the federated model trained without `site`."""
    return f"without:{site}"


def of_seed(seed: int) -> str:
    """Return the name of the federated model that was trained again with another seed."""
    return f"seed:{seed}"


def is_of_seed(model: str) -> bool:
    """Return whether a model is the federated one of another seed."""
    return model.startswith("seed:")


def model_of(stem: str) -> str:
    """Return the model name for a checkpoint file's stem: 'local-north' gives 'local:north'."""
    kind, _, site = stem.partition("-")
    return f"{kind}:{site}" if site and kind in KINDS else stem


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of one model on one group of patients, with its interval.

    `site` is the hospital whose patients were evaluated, `ALL_SITES` or `SITE_MEAN`. `model` is "federated",
    "local:<site>", "pooled", "untrained", "personal:<site>", "without:<site>" or "seed:<number>". `n` is the
    number of patients. If `value` is None, `note` gives the reason. `group` is a subgroup ("sex=F"). If the
    value is a difference (model minus against), `against` names the other model and `p` is the p value of
    this comparison alone, as is the interval; `p_holm` is corrected over those that `method` counts.
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
    p_holm: float | None = None
    method: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        _finite(self, ("value", "low", "high", "p", "p_holm"))
        if self.value is None and not self.note:
            raise ValueError(
                f"row {self.metric} of {self.model} at {self.site}: no value, and no note with the reason"
            )

    @property
    def is_suppressed(self) -> bool:
        """Whether it has no value because that would be over too few patients, or would give such a one."""
        return self.value is None and "fewer than" in (self.note or "")

    @property
    def key(self) -> tuple[object, ...]:
        """The values of the fields that identify the row."""
        return _ROW_KEY(self)


class CaseRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of one model on one case; it never leaves the hospital.

    Segmentation: `metric` is dice, hd95_mm, ... and `structure` the class. Classification and tabular data:
    `metric` is "probability", `structure` the class, `value` its probability, and `target` 1.0 if the case
    belongs to that class, else 0.0. Several findings per image: `metric` is "finding", `structure` the
    finding, and `target` None where it was not labelled. Survival: `metric` is "risk", `value` the predicted
    risk, `target` the time and `event` whether the event was observed; predicted survival has the metric
    "survival@<time>".
    Subgroups are formed by `attributes`. `condition` describes how the case was perturbed before evaluation
    ("noise of 10 %"), and is None for an unperturbed case.
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
        """The values of the fields that identify the row."""
        return _CASE_KEY(self)


Record = TypeVar("Record", Row, CaseRow)


def _finite(record: Any, names: tuple[str, ...]) -> None:
    # msgspec writes NaN as null, which would make a failed metric look like one that was never measured.
    for name in names:
        value = getattr(record, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"row {record.metric} of {record.model}: {name} is {value}; use None and a note instead"
            )
        if value is not None and type(value) is not float:
            # np.float64 is a subclass of float, but msgspec does not encode it.
            msgspec.structs.force_setattr(record, name, float(value))


def unperturbed(cases: Iterable[CaseRow]) -> list[CaseRow]:
    """Return the unperturbed cases; perturbed ones serve only to measure robustness."""
    return [case for case in cases if case.condition is None]


def append(path: Path, records: Iterable[Row | CaseRow]) -> None:
    """Append records to a JSON lines file in one write, after removing an unfinished last line."""
    data = _lines(records)
    with open(path, "ab+") as file:
        end = _finished_length(file)
        if end != file.seek(0, os.SEEK_END):
            file.truncate(end)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _finished_length(file: io.BufferedRandom) -> int:
    """Return the length of the file up to and including its last newline."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        step = min(position, 65536)
        file.seek(position - step)
        newline = file.read(step).rfind(b"\n")
        if newline >= 0:
            return position - step + newline + 1
        position -= step
    return 0


def write(path: Path, records: Iterable[msgspec.Struct]) -> None:
    """Write a JSON lines file atomically."""
    write_whole(path, _lines(records), durable=True)


def _lines(records: Iterable[msgspec.Struct]) -> bytes:
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON lines file: the last one per key, in the order in which keys first appear."""
    return _read(path, Row)


def read_cases(path: Path, model: str = "") -> list[CaseRow]:
    """Return the case rows of a JSON lines file: the last one per key, in order of first appearance.

    Given a `model`, only its rows are read, which is several times as fast where there are several models.
    """
    if not model:
        return _read(path, CaseRow)
    return [case for case in _read(path, CaseRow, msgspec.json.encode(model)) if case.model == model]


def _read(path: Path, kind: type[Record], containing: bytes = b"") -> list[Record]:
    decoder = msgspec.json.Decoder(kind)
    records: dict[tuple[object, ...], Record] = {}
    lines = path.read_bytes().split(b"\n")
    # The text after the last newline is empty, or a line that a killed process left unfinished.
    for number, line in enumerate(lines[:-1], start=1):
        if containing not in line:
            continue
        try:
            record = decoder.decode(line)
        except (*DECODING_ERRORS, ValueError) as error:
            raise RunError(
                f"{path.name}: line {number} is not a {kind.__name__}: {error}; restore the file"
            ) from error
        records[record.key] = record
    return list(records.values())


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV for spreadsheets."""
    text = io.StringIO()
    writer = csv.DictWriter(text, Row.__struct_fields__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: for_cell(value) if isinstance(value, str) else value for name, value in cells.items()}
        for cells in map(msgspec.structs.asdict, rows)
    )
    write_whole(path, text.getvalue(), durable=True)
