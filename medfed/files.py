"""Files that are written whole or not at all and are their owner's alone, locks, formats of times and sizes.

What medfed writes may hold patients' results, weights or messages: files are made with mode 0600 in folders
of mode 0700, whatever the umask. `private_files` holds that for everything that other libraries write, too.
What others must read (an exchange's shared folder) is made with `shared_mode`.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from medfed.errors import MedfedError, RunError, StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module is either there or None

# The permissions of what medfed writes: the owner's alone.
PRIVATE_FILE, PRIVATE_FOLDER, _PRIVATE_UMASK = 0o600, 0o700, 0o077

# The umask before `private_files`, by which files for others are made, and how many callers need that now.
_umask_before, _users, _changing = 0o022, 0, threading.Lock()

# What a machine lacked for the time being, and what helps: once someone has made room, it works.
PASSING = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space within this account's quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.ENOMEM: "free memory",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs' files",
    errno.EIO: "look after the disk or the network share, which failed",
    errno.ESTALE: "mount the network share again",
    errno.ETIMEDOUT: "look after the network or the network share",
    errno.ECONNREFUSED: "look after the network",
    errno.EHOSTUNREACH: "look after the network",
    errno.ENETUNREACH: "look after the network",
    errno.EADDRINUSE: "end what uses this address, or choose another port",
}

# The suffix of a file that is being written; whoever lists a folder passes over it.
UNFINISHED = ".writing"


@contextmanager
def private_files() -> Iterator[None]:
    """Make whatever this process creates meanwhile readable by its owner alone, whoever creates it."""
    global _users, _umask_before
    with _changing:  # a process has one umask for all its threads
        if not _users:
            _umask_before = os.umask(_PRIVATE_UMASK)
        _users += 1
    try:
        yield
    finally:
        with _changing:
            _users -= 1
            if not _users:
                os.umask(_umask_before)


def shared_mode(mode: int = 0o666) -> int:
    """Return the permissions of a file for others, by the umask of the person who started this process."""
    return mode & ~_umask_before


def private_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each readable by its owner alone."""
    if not folder.is_dir():
        private_folder(folder.parent)
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def describe_exposed(folder: Path) -> str:
    """Return how many files below a folder other accounts can read, and the command against it; '' if none.

    Whatever lies in a folder that only its owner may enter counts as closed.
    """
    count = _count_exposed(folder)
    if not count:
        return ""
    return (
        f"{count} files of earlier runs can be read by other accounts of this machine, though patients' "
        f"results, weights or messages may be among them; close them: chmod -R go= {shlex.quote(str(folder))}"
    )


def _count_exposed(folder: Path) -> int:
    try:
        if not folder.stat().st_mode & 0o077:
            return 0
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    count = 0
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            count += _count_exposed(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            count += bool(entry.stat(follow_symlinks=False).st_mode & 0o077)
    return count


@contextmanager
def replacing(path: Path, *, durable: bool = False, mode: int = PRIVATE_FILE) -> Iterator[Path]:
    """Yield the path to write to; it takes the place of `path` when the block ends, and is
    deleted if it raises.

    A reader sees the old file or the new one, never a part. `durable` waits until the bytes are on
    disk, so that the file outlives a power loss. `mode` sets the permissions before anything is written.
    """
    aside = path.with_name(path.name + UNFINISHED)
    private_folder(path.parent)
    try:
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


def is_plain_file(path: Path) -> bool:
    """Return whether a path is a file of its own: neither a link to another one, nor a device or a pipe."""
    return not path.is_symlink() and path.is_file()


def read_plain(path: Path) -> bytes:
    """Return the bytes of a file in a folder that somebody else may have filled; no link is followed.

    Raises:
        OSError: if it is a link, or no file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no plain file")
        return file.read()


# Not on every system: where it lacks them, only `is_plain_file` looks.
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)


def write_whole(path: Path, data: bytes | str, *, durable: bool = False, mode: int = PRIVATE_FILE) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; text is UTF-8."""
    with replacing(path, durable=durable, mode=mode) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


def not_written(what: str, error: OSError | RuntimeError, then: str) -> RunError:
    """Return the error for a file of a run folder that could not be written; `then` says how to go on.

    torch's writer makes a RuntimeError of a full disk, so one without a number counts as that.
    """
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC
    if number in PASSING:
        return StorageError(f"{what}; {PASSING[number]} and {then}")
    return RunError(f"{what}; give this account the right to write in the run folder, and {then}")


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


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock on this file; a file that is not there has none."""
    if not path.exists():
        return False
    with path.open("r+b") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            return True
    return False


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


def percent_of(share: float) -> str:
    """Return a share in per cent; what is nearly all or nearly none is never rounded to 100.0% or 0.0%."""
    if 0.9995 <= share < 1:
        return "over 99.9%"
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "under 0.1%"


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
