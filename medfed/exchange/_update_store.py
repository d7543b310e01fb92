"""Holds what the memory exchange carries: small updates in memory, the rest in a file of this process.

A simulation of a hundred sites would otherwise hold a hundred models at once while their hub collects. The
header is encoded and decoded as across machines. Tensors are copied once, and not at all where the sender
gives them up (`Released`). The file is mapped tensor by tensor, and a place in it used again for a later
update, because writing to pages that the system holds already takes half as long. It is one file for all
updates, since a process may open a thousand only.
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from medfed.errors import RunError
from medfed.files import format_bytes
from medfed.wire import encoding
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, Released, Weights

# Bytes of encoded updates that are held in memory together.
DEFAULT_MEMORY_BYTES = 256 << 20

Piece = bytes | memoryview


class OpenFile(Protocol):
    """An open file, whoever reads and writes it."""

    def fileno(self) -> int: ...


class StoredUpdate:
    """One encoded update, in memory or at a place in a file, used again once nobody can read this update."""

    def __init__(
        self, head: bytes, reader: _InMemory | _InFile, size: int, norm: float | None = None
    ) -> None:
        self._head, self._reader, self.size, self._norm = head, reader, size, norm

    @property
    def in_memory(self) -> int:
        """The bytes that this update takes in memory."""
        return self.size if isinstance(self._reader, _InMemory) else 0

    def encoded(self) -> bytes:
        """Return the encoding as a whole, for a test that searches it."""
        assert isinstance(self._reader, _InFile)
        tensors = self._reader.read("", 0, self.size - len(self._head))
        return self._head + tensors.numpy().tobytes()

    def decode(self, weights: Weights, study_digest: str) -> Update:
        """Return the update; from a file its tensors are mapped on access.

        Raises:
            WireError: as `encoding.decode_update`.
        """
        lazy = isinstance(self._reader, _InFile)
        update = encoding.join_update(self._head, self._reader, weights, study_digest, lazy=lazy)
        if self._norm is None or not isinstance(update.delta, Difference):
            return update
        return replace(update, delta=Difference(update.delta.minuend, weights, self._norm))


def stored_in(file: OpenFile, start: int, head: bytes, size: int) -> StoredUpdate:
    """Return the update of `size` bytes whose head is given and whose tensors begin at `start` of a file."""
    return StoredUpdate(head, _InFile(file, start, _Lease()), size)


class UpdateStore:
    """Stores updates, and keeps the places of their file that are free again, each with its length."""

    def __init__(self) -> None:
        self._file: IO[Any] | None = None
        self._end = 0
        self._free: list[tuple[int, int]] = []

    def store(self, update: Update, study_digest: str, memory_bytes: int) -> StoredUpdate:
        """Return an encoded update in memory if it takes at most so many bytes there, else in a file.

        Raises:
            RunError: if it cannot be written to the file.
        """
        head, *tensors = encoding.update_pieces(update, study_digest)
        size = _size([head, *tensors])
        # What the site has measured of the difference holds here, too: its bytes have not left this process.
        norm = update.delta.norm if isinstance(update.delta, Difference) else None
        if size > memory_bytes:
            try:
                return StoredUpdate(bytes(head), self._written([head, *tensors], size), size, norm)
            except OSError as error:
                raise RunError(
                    f"site '{update.site}', round {update.round}: its update of {format_bytes(size)} cannot "
                    f"be written to this machine's folder for temporary files ({error.strerror}); make room "
                    "there, or name a folder that has room in TMPDIR"
                ) from error
        minuend = update.delta.minuend if isinstance(update.delta, Difference) else None
        given = isinstance(minuend, Released)
        local = encoding.offsets_of(bytes(head), "local") if given else frozenset()
        return StoredUpdate(bytes(head), _InMemory(tensors, local), size, norm)

    def _written(self, pieces: Sequence[Piece], size: int) -> _InFile:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="medfed-", buffering=0)  # noqa: SIM115 - nameless
        place = next((one for one in self._free if one[1] >= size), None)
        if place is None:
            place = self._end, -(-size // _PLACE_BYTES) * _PLACE_BYTES
            self._end += place[1]
        else:
            self._free.remove(place)
        lease = _Lease()
        weakref.finalize(lease, self._free.append, place).atexit = False
        self._file.seek(place[0])
        for piece in pieces:
            _write(self._file, piece)
        return _InFile(self._file, place[0] + len(pieces[0]), lease)


# Places are multiples of this long, so that an update fits where one was that is some bytes shorter.
_PLACE_BYTES = 1 << 16


def _write(file: IO[Any], piece: Piece) -> None:
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]


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
    """Says, as long as it is referred to, that a place in a file is in use."""


class _Mapping(mmap.mmap):
    lease: _Lease


class _InFile:
    """Tensors of an encoding in a file, each mapped on access.

    Nobody else can shorten the file, which has no name: a mapping of a shared file could end the process.
    """

    def __init__(self, file: OpenFile, start: int, lease: _Lease) -> None:
        self._file, self._start, self._lease = file, start, lease

    def read(self, name: str, first: int, last: int) -> Tensor:
        if last == first:
            return torch.empty(0, dtype=torch.uint8)
        before = (self._start + first) % mmap.ALLOCATIONGRANULARITY
        # Private pages: who writes to a tensor changes no file.
        offset, length = self._start + first - before, last - first + before
        try:
            mapping = _Mapping(self._file.fileno(), length, access=mmap.ACCESS_COPY, offset=offset)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: a tensor of each update is mapped from a file at once; raise this "
                "process's limits of open files (ulimit -n) and of memory (ulimit -v)",
            ) from error
        mapping.lease = self._lease
        return torch.frombuffer(mapping, dtype=torch.uint8, offset=before)


def _size(pieces: Iterable[Piece]) -> int:
    return sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
