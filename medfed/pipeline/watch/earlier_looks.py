"""Of which patients a watch has shown numbers before, in `earlier.json`; it stays in the hospital.

A folder that grows by a patient between two looks gives that patient's values: thirteen times the second mean
minus twelve times the first, or the bin that has one more. So a look's numbers are shown only if no few
patients follow from them beside the earlier ones (`disclosure.differ_by_few`). Patients are named by digests
under a key of this file alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from medfed.errors import DECODING_ERRORS, RunError
from medfed.evaluation.disclosure import differ_by_few
from medfed.files import write_whole
from medfed.runs.trained import KEY_BYTES, TrainedCases


class Shown(msgspec.Struct, frozen=True):
    """What a look showed, and of whom: `what` is a name, such as that of a metric."""

    look: int
    what: str
    patients: list[str]


class EarlierLooks(msgspec.Struct, frozen=True):
    """The key of the digests, and all that was shown."""

    key: str
    shown: list[Shown] = []

    def digests(self, patients: Iterable[str]) -> frozenset[str]:
        """Return patients' digests."""
        key = TrainedCases(self.key)
        return frozenset(key.digest(patient.encode()) for patient in patients)

    def gives_few(self, what: str, patients: Iterable[str], min_patients: int) -> bool:
        """Return whether this of these patients, beside what was shown of others, is of too few."""
        earlier = [frozenset(one.patients) for one in self.shown if one.what == what]
        return differ_by_few(self.digests(patients), earlier, min_patients)

    def after(self, look: int, what: str, patients: Iterable[str]) -> EarlierLooks:
        """Return these looks and one more."""
        return EarlierLooks(self.key, [*self.shown, Shown(look, what, sorted(self.digests(patients)))])


def read_earlier(path: Path) -> EarlierLooks:
    """Return what was shown before; nothing, under a new key, where there is no file.

    Raises:
        RunError: if the file is damaged.
    """
    if not path.is_file():
        return EarlierLooks(os.urandom(KEY_BYTES).hex())
    try:
        return msgspec.json.decode(path.read_bytes(), type=EarlierLooks)
    except DECODING_ERRORS as error:
        raise RunError(
            f"{path.name}, which says of which patients earlier looks were, is damaged ({error}); restore it "
            "from a back-up. Without it two looks could give a single patient's values"
        ) from None


def read_all(path: Path) -> dict[str, EarlierLooks]:
    """Return what was shown before in this watch and in the run's others, by the names of the watches.

    Another name is no way around: who has both pages can subtract them all the same.

    Raises:
        RunError: if a file is damaged.
    """
    others = {one.parent.name: read_earlier(one) for one in sorted(path.parent.parent.glob(f"*/{path.name}"))}
    return {path.parent.name: read_earlier(path), **others}


def write_earlier(path: Path, earlier: EarlierLooks) -> None:
    """Keep what is shown, before it is; on disk when this returns."""
    write_whole(path, msgspec.json.encode(earlier), durable=True)
