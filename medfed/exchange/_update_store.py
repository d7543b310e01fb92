"""Holds the encoded updates of one round: small ones in memory, the rest in files of this process.

A simulation of a hundred sites would otherwise hold a hundred models at once while their hub collects.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from medfed.wire import encoding
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# Bytes of encoded updates that are held in memory together; each takes as much again while it is merged.
DEFAULT_MEMORY_BYTES = 128 << 20


class StoredUpdate:
    """One encoded update, in memory or in a file that is removed with this object."""

    def __init__(self, content: bytes | Path, size: int) -> None:
        self._content, self.size = content, size
        if isinstance(content, Path):
            weakref.finalize(self, content.unlink, missing_ok=True)

    @property
    def in_memory(self) -> int:
        """The bytes that this update takes in memory."""
        return self.size if isinstance(self._content, bytes) else 0

    def decode(self, weights: Weights, study_digest: str) -> Update:
        """Return the update; from a file its tensors are read on access.

        Raises:
            WireError: as `encoding.decode_update`.
        """
        if isinstance(self._content, bytes):
            return encoding.decode_update(self._content, weights, study_digest)
        return encoding.read_update(self._content, weights, study_digest)


def store(pieces: Sequence[bytes | memoryview], memory_bytes: int) -> StoredUpdate:
    """Return an encoded update in memory if it takes at most so many bytes there, else in a file."""
    size = sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
    if size <= memory_bytes:
        return StoredUpdate(b"".join(pieces), size)
    handle, name = tempfile.mkstemp(prefix="medfed-", suffix=".update")  # its owner's alone
    with os.fdopen(handle, "wb") as file:
        file.writelines(pieces)
    return StoredUpdate(Path(name), size)
