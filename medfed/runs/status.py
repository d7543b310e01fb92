"""What a hub or site is doing, in one small JSON file, for monitoring a service that has no terminal.

The file is replaced as a whole at each change, so a reader never sees half of it. It holds no patient data.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec

from medfed.files import utc_now, write_whole

# Training steps come fast; the file is written at most this often, except when the state changes.
MIN_INTERVAL_S = 1.0


class StatusFields(TypedDict, total=False):
    """The fields of status.json; a field that does not apply yet is absent."""

    state: str
    reason: str
    study: str
    digest: str
    rounds: int
    round: int
    last_round_s: float
    round_ends_in_s: float | None
    step: int
    steps: int
    scores: Mapping[str, float]
    connected: list[str]
    awaited: list[str]
    awaited_since: dict[str, str]
    stored_bytes: dict[str, int]
    last_contact: str
    written: str


class Status:
    """The status file of one hub or site. If the disk is full a status is lost, never a round."""

    def __init__(self, path: Path, **fields: Unpack[StatusFields]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fields: StatusFields = {"state": "starting", **fields}
        self._written = 0.0
        self.update()

    def update(self, **fields: Unpack[StatusFields]) -> None:
        """Change some of the fields."""
        with self._lock:
            now = time.monotonic()
            changed = fields.get("state", self._fields["state"]) != self._fields["state"]
            self._fields.update(fields)
            if not changed and fields and now - self._written < MIN_INTERVAL_S:
                return
            self._written = now
            self._fields["written"] = utc_now()
            try:
                write_whole(self._path, msgspec.json.format(msgspec.json.encode(self._fields), indent=2))
            except OSError:
                return
