"""Files that are written whole or not at all, file locks, and formats of times and sizes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from medfed.errors import MedfedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module is either there or None

# The suffix of a file that is being written; whoever lists a folder passes over it.
UNFINISHED = ".writing"


@contextmanager
def replacing(path: Path, *, durable: bool = False, mode: int | None = None) -> Iterator[Path]:
    """Yield the path to write to; it takes the place of `path` when the block ends, and is
    deleted if it raises.

    A reader sees the old file or the new one, never a part. `durable` waits until the bytes are on
    disk, so that the file outlives a power loss. `mode` sets the permissions, such as 0o600,
    before anything is written.
    """
    aside = path.with_name(path.name + UNFINISHED)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if mode is not None:
            aside.unlink(missing_ok=True)
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield aside
        if durable:
            _sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def write_whole(path: Path, data: bytes | str, *, durable: bool = False, mode: int | None = None) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; text is UTF-8."""
    with replacing(path, durable=durable, mode=mode) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


def require_file_locks(part: str) -> None:
    """Check, when a part of medfed is imported, that this system has the file locks that the part needs.

    Raises:
        MedfedError: naming the part, if it has none.
    """
    if fcntl is None:
        raise MedfedError(
            f"{part} needs POSIX file locks (fcntl), which this operating system does not have; "
            "run medfed on Linux, or on Windows inside WSL"
        )


def lock(file: int | IO[Any], *, wait: bool = True) -> None:
    """Lock an open file among processes, until it is closed or the process ends.

    Raises:
        OSError: if another process holds the lock and `wait` is false.
    """
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def utc_now() -> str:
    """Return the time in UTC as ISO 8601 to the second, such as 2026-11-29T18:01:35+00:00."""
    return utc_time(time.time())


def utc_time(seconds: float) -> str:
    """Return a time since the epoch in UTC as ISO 8601 to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def format_bytes(count: float) -> str:
    """Return a number of bytes in decimal units, such as '40.0 MB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
