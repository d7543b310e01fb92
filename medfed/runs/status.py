"""How far a party is, in one small JSON file, for whoever watches a service without a terminal.

The file is replaced whole at each change, so a reader never sees half of it. It holds nothing of a patient.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from medfed.runs.folder import write_whole

# The file's name in a run folder.
FILE = "status.json"

# Steps of training come fast; the file is written at most this often, except where the state changes.
EVERY_S = 1.0


class Status:
    """What a party does at the moment. A disk that is full loses a status, never a round."""

    def __init__(self, path: Path, **fields: Any) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fields: dict[str, Any] = {"state": "starting", **fields}
        self._written = 0.0
        self.tell()

    def tell(self, **fields: Any) -> None:
        """Change some of what it says."""
        with self._lock:
            now = time.monotonic()
            changed = fields.get("state", self._fields["state"]) != self._fields["state"]
            self._fields.update(fields)
            if not changed and fields and now - self._written < EVERY_S:
                return
            self._written = now
            self._fields["written"] = stamp()
            try:
                write_whole(self._path, msgspec.json.format(msgspec.json.encode(self._fields), indent=2))
            except OSError:
                return


def stamp(seconds: float | None = None) -> str:
    """Return a time of day in UTC, now if none is given."""
    found = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return found.isoformat(timespec="seconds")
