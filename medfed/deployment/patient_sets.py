"""A file of the patients whose numbers a hospital has sent, over all studies; it never leaves.

One JSON line for each set of patients, by salted tokens, beside the run folders of all studies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from medfed.errors import DECODING_ERRORS, RunError
from medfed.files import PRIVATE_FILE, lock, private_folder, utc_now


class PatientSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """When numbers were sent (UTC), for which study, of which patients, and of what in them ('' of all)."""

    time: str
    study: str
    patients: list[str]
    what: str = ""


@dataclass(frozen=True)
class PatientSets:
    """The sets in an open and locked file."""

    file: BinaryIO
    sets: list[PatientSet]

    def add(self, study: str, patients: frozenset[str], what: str = "") -> None:
        """Keep one more set; on disk when this returns."""
        one = PatientSet(utc_now(), study, sorted(patients), what)
        self.file.write(msgspec.json.encode(one) + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def patient_sets(path: Path, numbers: str) -> Iterator[PatientSets]:
    """Yield the sets of patients in a file, which is made if it is missing; nobody else can use it meanwhile.

    `numbers` says what was sent, such as 'statistics'.

    Raises:
        RunError: if the file is damaged.
    """
    private_folder(path.parent)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, PRIVATE_FILE), "r+b") as file:
        lock(file)  # several studies at once
        yield PatientSets(file, list(_read(path.name, file.read(), numbers)))


def _read(name: str, data: bytes, numbers: str) -> Iterator[PatientSet]:
    for line_number, line in enumerate(data.splitlines(), 1):
        try:
            yield msgspec.json.decode(line, type=PatientSet)
        except DECODING_ERRORS as error:
            raise RunError(
                f"{name}, line {line_number}: of which patients this site sent {numbers} before is damaged "
                f"({error}); restore the file from a back-up. Without it, {numbers} of a few patients "
                "could leave as the difference of two answers"
            ) from None
