"""Holds what the memory exchange carries: small updates in memory, the rest in files of this process.

A simulation of a hundred sites would otherwise hold a hundred models at once while their hub collects. The
header is encoded and decoded as across machines. Tensors are copied once, and not at all where the sender
gives them up (`Released`); a file is mapped tensor by tensor, and used again for a later update, because
writing to pages that the system holds already takes half as long.
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, Any

import torch
from torch import Tensor

from medfed.wire import encoding
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, Released, Weights

# Bytes of encoded updates that are held in memory together.
DEFAULT_MEMORY_BYTES = 256 << 20

Piece = bytes | memoryview


class StoredUpdate:
    """One encoded update, in memory or in a file that is used again once nobody can read this update."""

    def __init__(self, head: bytes, reader: _InMemory | _InFile, size: int) -> None:
        self._head, self._reader, self.size = head, reader, size

    @property
    def in_memory(self) -> int:
        """The bytes that this update takes in memory."""
        return self.size if isinstance(self._reader, _InMemory) else 0

    def decode(self, weights: Weights, study_digest: str) -> Update:
        """Return the update; from a file its tensors are mapped on access.

        Raises:
            WireError: as `encoding.decode_update`.
        """
        lazy = isinstance(self._reader, _InFile)
        return encoding.join_update(self._head, self._reader, weights, study_digest, lazy=lazy)


class UpdateStore:
    """Stores updates, and keeps the files that are free again."""

    def __init__(self) -> None:
        self._free: list[IO[Any]] = []

    def store(self, update: Update, study_digest: str, memory_bytes: int) -> StoredUpdate:
        """Return an encoded update in memory if it takes at most so many bytes there, else in a file."""
        head, *tensors = encoding.update_pieces(update, study_digest)
        size = _size([head, *tensors])
        if size > memory_bytes:
            return StoredUpdate(bytes(head), self._written(head, tensors), size)
        minuend = update.delta.minuend if isinstance(update.delta, Difference) else None
        given = isinstance(minuend, Released)
        local = encoding.offsets_of(bytes(head), "local") if given else frozenset()
        return StoredUpdate(bytes(head), _InMemory(tensors, local), size)

    def _written(self, head: Piece, tensors: Sequence[Piece]) -> _InFile:
        try:
            file = self._free.pop()
        except IndexError:
            file = tempfile.TemporaryFile(prefix="medfed-")  # noqa: SIM115 - nameless, and kept for reuse
        lease = _Lease()
        weakref.finalize(lease, self._free.append, file).atexit = False
        file.seek(0)
        file.writelines([head, *tensors])
        file.flush()
        return _InFile(file, len(head), lease)


class StoredModel:
    """One encoded global model, as copies of its tensors."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        head, *tensors = pieces
        self.size = _size([head, *tensors])
        self._head, self._reader = bytes(head), _InMemory(tensors)

    def decode(self, study_digest: str) -> GlobalModel:
        """Return the model; each call returns the same tensors.

        Raises:
            WireError: as `encoding.decode_global`.
        """
        return encoding.join_global(self._head, self._reader, study_digest)


class _InMemory:
    """Tensors of an encoding by their first offset; `given` are the offsets of those that are not copied."""

    def __init__(self, tensors: Sequence[Piece], given: frozenset[int] = frozenset()) -> None:
        self._buffers: dict[int, Tensor] = {}
        first = 0
        for piece in tensors:
            buffer = torch.frombuffer(piece, dtype=torch.uint8)
            self._buffers[first] = buffer if first in given else buffer.clone()
            first += len(buffer)

    def read(self, name: str, first: int, last: int) -> Tensor:
        return self._buffers[first] if last > first else torch.empty(0, dtype=torch.uint8)


class _Lease:
    """Says, as long as it is referred to, that a file is in use."""


class _Mapping(mmap.mmap):
    lease: _Lease


class _InFile:
    """Tensors of an encoding in a file, each mapped on access.

    Nobody else can shorten the file, which has no name: a mapping of a shared file could end the process.
    """

    def __init__(self, file: IO[Any], start: int, lease: _Lease) -> None:
        self._file, self._start, self._lease = file, start, lease

    def read(self, name: str, first: int, last: int) -> Tensor:
        if last == first:
            return torch.empty(0, dtype=torch.uint8)
        before = (self._start + first) % mmap.ALLOCATIONGRANULARITY
        # Private pages: who writes to a tensor changes no file.
        mapping = _Mapping(
            self._file.fileno(),
            last - first + before,
            access=mmap.ACCESS_COPY,
            offset=self._start + first - before,
        )
        mapping.lease = self._lease
        return torch.frombuffer(mapping, dtype=torch.uint8, offset=before)


def _size(pieces: Iterable[Piece]) -> int:
    return sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
