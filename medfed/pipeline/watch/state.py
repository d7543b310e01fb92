"""What a hospital keeps of a watch, in `watch/NAME/` of the run folder: its reference and its looks.

    reference.json *  the sketch that looks are compared with, and keyed digests of its cases
    looks.jsonl       one line per look: what was compared, and the alarms
    sketch.json       the newest look's sketch without small groups, which another reference may take in
    rows.jsonl        results over patients with labels, one look a round
    cases.jsonl *     the same per patient
    earlier.json *    keyed digests of the patients of whom looks showed something
    watch.html        the page

Those marked * stay in the hospital.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from medfed.errors import DECODING_ERRORS, RunError
from medfed.evaluation.drift.compare import Compared, Level
from medfed.evaluation.drift.sketch import Sketch
from medfed.files import lock, private_folder, write_whole
from medfed.runs.trained import TrainedCases

_T = TypeVar("_T")


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What looks are compared with: a sketch, of which model, and how alarms are decided.

    cases: digests of its cases, so that none is looked at again.  note: what is not known of its outputs.
    """

    version: Literal[1] = 1
    made: str
    study: str
    weights_sha256: str
    patients: int
    unseen: int
    level: Level
    sketch: Sketch
    cases: TrainedCases
    note: str = ""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One look: how many patients, who was left out and why, and what was compared."""

    number: int
    made: str
    patients: int
    known: int
    unusable: int
    compared: list[Compared]

    @property
    def alarms(self) -> list[Compared]:
        """The comparisons that are alarms."""
        return [one for one in self.compared if one.state == "alarm"]


class WatchFolder:
    """The files of one hospital's watch of one run."""

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / "watch" / name
        self.reference = self.path / "reference.json"
        self.looks = self.path / "looks.jsonl"
        self.sketch = self.path / "sketch.json"
        self.rows = self.path / "rows.jsonl"
        self.cases = self.path / "cases.jsonl"
        self.earlier = self.path / "earlier.json"
        self.page = self.path / "watch.html"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for one look.

        Raises:
            RunError: if another process looks at the same time.
        """
        private_folder(self.path)
        with (self.path / "lock").open("a") as file:
            try:
                lock(file, wait=False)
            except OSError:
                raise RunError(
                    f"watch of '{self.path.name}': another process is looking now; run it again later"
                ) from None
            yield

    def read_reference(self) -> Reference | None:
        """Return the reference, or None if there is none.

        Raises:
            RunError: if it is damaged.
        """
        return _decoded(self.reference, Reference) if self.reference.is_file() else None

    def write_reference(self, reference: Reference) -> None:
        """Replace the reference."""
        write_whole(self.reference, msgspec.json.encode(reference), durable=True)

    def read_looks(self) -> list[Look]:
        """Return the looks so far, in order.

        Raises:
            RunError: if a line is damaged.
        """
        if not self.looks.is_file():
            return []
        lines = self.looks.read_bytes().split(b"\n")[:-1]
        try:
            return [msgspec.json.decode(line, type=Look) for line in lines]
        except DECODING_ERRORS as error:
            raise RunError(
                f"{self.looks.name}: damaged ({error}); restore it from a back-up: it says how many looks "
                "there were"
            ) from None

    def append_look(self, look: Look) -> None:
        """Add a look; the file is written whole, so that no line is half there."""
        before = self.looks.read_bytes() if self.looks.is_file() else b""
        write_whole(self.looks, before + msgspec.json.encode(look) + b"\n", durable=True)


def read_sketch(path: Path) -> Sketch:
    """Return a hospital's released sketch.

    Raises:
        RunError: if the file is none.
    """
    return _decoded(path, Sketch)


def _decoded(path: Path, record: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=record)
    except DECODING_ERRORS as error:
        raise RunError(
            f"{path.name}: damaged, or of another medfed ({error}); restore it, or make it anew"
        ) from None
