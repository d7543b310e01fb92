"""What a simulation and its worker processes send each other: records, and files without a name.

Both ends are medfed's own, on one machine and of one person, joined by a pair of sockets that nobody else can
open. Records are MessagePack; nothing is unpickled. Tensors are in files that have no name, mostly in memory,
whose descriptors are sent (SCM_RIGHTS, unix(7)): they last as long as a process maps them, and nothing is
left behind whoever is killed.
"""

from __future__ import annotations

import builtins
import os
import socket
import tempfile
import threading
import traceback
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from medfed import errors
from medfed.errors import MedfedError, place_in_plugin

# The most descriptors that come with one record.
_MAX_FILES = 1

_LENGTH_BYTES = 8


class Failure(msgspec.Struct, frozen=True):
    """An exception of another process: its class, text and traceback, and where in a plug-in it arose."""

    kind: str
    message: str
    trace: str = ""
    place: str | None = None


class Setup(msgspec.Struct, frozen=True, tag=True):
    """To a worker, first: what it works on (`work`), and what its side of the exchange knows.

    log_levels: the levels of the root logger and of medfed's.
    """

    study_digest: str
    parties: tuple[str, ...]
    only_selected: bool
    log_levels: tuple[int, int]
    work: dict[str, Any]


class StartSite(msgspec.Struct, frozen=True, tag=True):
    """To a worker: begin a site's function, from its last checkpoint if `resume`."""

    site: str
    resume: bool
    work: dict[str, Any]


class ModelSent(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the hub's model that the next answer to `fetch` means; its encoding comes as a file."""

    head: bytes
    sha256: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    """To a worker: what a site's call returned or raised."""

    site: str
    value: Any = None
    failure: Failure | None = None


class StudyClosed(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the study has ended; sites stop at their next step."""


class WorkerEnds(msgspec.Struct, frozen=True, tag=True):
    """To a worker: all its sites have ended, and so does it."""


class Call(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a site calls the exchange or the audit log, and waits for the answer."""

    site: str
    method: str
    arguments: list[Any] = []


class Report(msgspec.Struct, frozen=True, tag=True):
    """From a worker: what a person sees of a site; `site` is '' where no site's code runs."""

    site: str
    what: str
    arguments: list[Any] = []


class SiteEnded(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a site's function has returned or raised."""

    site: str
    failure: Failure | None = None


Frame = Setup | StartSite | ModelSent | Answer | StudyClosed | WorkerEnds | Call | Report | SiteEnded

_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """Return a record as MessagePack."""
    return _encoder.encode(frame)


def decode_frame(data: bytes) -> Frame:
    """Return the record of `encode_frame`."""
    frame: Frame = _decoder.decode(data)
    return frame


class NamelessFile:
    """An open file without a name; it is closed once nobody refers to this object."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._descriptor

    def write(self, piece: bytes | memoryview, start: int) -> int:
        """Write a piece at this place; return where it ends. A position that processes share is not used."""
        left = memoryview(piece)
        while left:
            written = os.pwrite(self._descriptor, left, start)
            left, start = left[written:], start + written
        return start

    def close(self) -> None:
        """Close it; what is mapped of it stays."""
        self._close()


def nameless_file(in_memory: bool) -> NamelessFile:
    """Return a new file without a name, in memory where the system can and if asked, else on disk."""
    if in_memory and hasattr(os, "memfd_create"):
        return NamelessFile(os.memfd_create("medfed"))
    with tempfile.TemporaryFile(prefix="medfed-") as file:
        return NamelessFile(os.dup(file.fileno()))


class Connection(Protocol):
    """One end of a connection between the two; any thread sends, one receives."""

    def send(self, frame: Frame, files: Sequence[int] = ()) -> None:
        """Send a record, with descriptors of open files.

        Raises:
            OSError: if the other end is closed.
        """

    def receive(self) -> tuple[Frame, list[NamelessFile]] | None:
        """Wait for a record and the files that came with it; None if the other end is closed."""
        ...

    def shut(self) -> None:
        """End the connection: whoever receives at either end is told."""

    def close(self) -> None:
        """Close this end, once nobody receives here any more."""


class Link:
    """One end of a connection by a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._sending = end, threading.Lock()

    def send(self, frame: Frame, files: Sequence[int] = ()) -> None:
        data = encode_frame(frame)
        length = len(data).to_bytes(_LENGTH_BYTES, "big")
        with self._sending:
            sent = socket.send_fds(self._socket, [length], list(files)) if files else 0
            self._socket.sendall(length[sent:] + data)

    def receive(self) -> tuple[Frame, list[NamelessFile]] | None:
        try:
            head, files = self._head()
            data = self._exactly(int.from_bytes(head, "big")) if head else b""
        except OSError:
            return None
        return (decode_frame(data), files) if data else None

    def _head(self) -> tuple[bytes, list[NamelessFile]]:
        head, files = b"", []
        while len(head) < _LENGTH_BYTES:
            part, received, _, _ = socket.recv_fds(self._socket, _LENGTH_BYTES - len(head), _MAX_FILES)
            files += [NamelessFile(one) for one in received]
            if not part:
                return b"", files
            head += part
        return head, files

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                return b""
            data += part
        return bytes(data)

    def shut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


# -- exceptions of another process


def failure_of(error: BaseException) -> Failure:
    """Return what another process needs to know of an exception."""
    trace = "".join(traceback.format_exception(error))
    return Failure(type(error).__name__, str(error), trace, place_in_plugin(error))


def error_of(failure: Failure) -> BaseException:
    """Return an exception like the one of another process, whose cause shows the traceback there.

    medfed's and Python's own keep their class; any other one becomes a class of the same name.
    """
    known = getattr(errors, failure.kind, None) or getattr(builtins, failure.kind, None)
    same = isinstance(known, type) and issubclass(
        known, (MedfedError, OSError, KeyboardInterrupt, SystemExit)
    )
    kind: Any = known if same else type(failure.kind, (Exception,), {})
    error: BaseException = kind(failure.message)
    if failure.place is not None:
        error.place_in_plugin = failure.place  # type: ignore[attr-defined]  # what `errors` looks for
    error.__cause__ = _RemoteTraceback(failure.trace)
    return error


class _RemoteTraceback(Exception):
    """Shows the traceback of another process, as `multiprocessing` does."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"
