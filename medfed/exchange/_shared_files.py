"""Files below one folder, which other parties can write to and may have filled with anything.

`LocalFiles` is for a folder of this machine, or one that the system mounts: whoever can write there can put a
link to another file, a pipe on which a reader waits for ever, a device, or a file larger than memory under
any name. Each part of a path is opened from the one before it and never through a link, only regular files
are read, their sizes are checked first, and nothing is waited for. `RemoteFiles` is for a storage that fsspec
reaches, which has no such files: there the size is checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from medfed.exchange._object_store import Parts, UnsafeObject
from medfed.files import shared_mode

# The largest object that is read: twice a chunk, and far more than a manifest or a message.
MAX_OBJECT_BYTES = 16 << 20

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# Storages whose rename replaces a file atomically. Elsewhere an object is written completely or not at all.
_RENAMING_PROTOCOLS = ("sftp", "ssh", "smb")


class SharedFiles(Protocol):
    """Files by name, the parts of which are separated by slashes."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if there is none.

        Raises:
            UnsafeObject: if it is too large, or something else than a file.
        """

    def write(self, name: str, parts: Parts, if_absent: bool) -> None:
        """Write a file, so that a reader sees none or all of it; with `if_absent` an existing one stays."""

    def names(self, parent: str) -> list[str]:
        """Return the names in a folder; none if there is no such folder."""

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it."""


@dataclass(frozen=True)
class LocalFiles:
    """Files below a folder of this machine."""

    root: str

    def read(self, name: str) -> bytes | None:
        parent, _, last = name.rpartition("/")
        with self._folder(parent) as folder:
            if folder is None or (found := _kind(folder, last)) == "nothing":
                return None
            if found != "a file":
                raise _unsafe(name, found)
            try:
                handle = os.open(last, _READ, dir_fd=folder)
            except FileNotFoundError:
                return None
            except PermissionError as error:
                # Not as a storage that cannot be reached: one site must not keep the hub from reading others.
                raise _unsafe(name, "a file that this account may not read") from error
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            # Looked at again: it may have been replaced since.
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_OBJECT_BYTES:
                raise _unsafe(name, f"a file of {status.st_size} bytes")
            # Not up to the limit: a buffer of that size would be made for each chunk.
            return file.read(status.st_size)

    def write(self, name: str, parts: Parts, if_absent: bool) -> None:
        parent, _, last = name.rpartition("/")
        with self._folder(parent, create=True) as folder:
            if if_absent and _kind(folder, last) == "a file":
                return
            temporary = f".{last}.{os.getpid()}-{threading.get_ident()}"
            with contextlib.suppress(FileNotFoundError):  # of a killed process of the same number
                os.unlink(temporary, dir_fd=folder)
            try:
                with os.fdopen(os.open(temporary, _CREATE, 0o600, dir_fd=folder), "wb") as file:
                    os.fchmod(file.fileno(), shared_mode())
                    for part in parts:
                        file.write(part)
                # Replaces a link or a pipe itself, not what it leads to.
                os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise

    def names(self, parent: str) -> list[str]:
        with self._folder(parent) as folder:
            return [] if folder is None else os.listdir(folder)

    def remove(self, name: str) -> None:
        parent, _, last = name.rpartition("/")
        with self._folder(parent) as folder:
            if folder is None:
                return
            if _kind(folder, last) == "a folder":
                shutil.rmtree(last, dir_fd=folder)
            else:
                os.unlink(last, dir_fd=folder)

    @contextmanager
    def _folder(self, name: str, create: bool = False) -> Iterator[int | None]:
        """Yield a folder below the root, opened part by part without following a link, or None.

        Raises:
            UnsafeObject: if a part of the path is a link, or another thing than a folder.
        """
        if create:
            os.makedirs(self.root, exist_ok=True)
        with contextlib.ExitStack() as opened:
            try:
                # The root itself may be a link: whoever runs this machine made it.
                handle = os.open(self.root, _FOLDER & ~os.O_NOFOLLOW)
                opened.callback(os.close, handle)
                for part in filter(None, name.split("/")):
                    if create:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(part, dir_fd=handle)
                            os.chmod(part, shared_mode(0o777), dir_fd=handle)
                    handle = _open_folder(name, part, handle)
                    opened.callback(os.close, handle)
            except FileNotFoundError:
                if create:
                    raise
                handle = -1
            yield None if handle < 0 else handle


def _open_folder(name: str, part: str, parent: int) -> int:
    if part == "..":
        raise _unsafe(name, "a path out of the exchange's folder")
    try:
        return os.open(part, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            raise
        barred = " that this account may not read" if error.errno == errno.EACCES else ""
        raise _unsafe(name, f"{_kind(parent, part)}{barred}", "a folder") from error


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _kind(folder: int | None, name: str) -> str:
    """Return in words what is under a name, without opening it."""
    try:
        return _KINDS.get(stat.S_IFMT(os.lstat(name, dir_fd=folder).st_mode), "something else")
    except FileNotFoundError:
        return "nothing"


def _unsafe(
    name: str, found: str, expected: str = f"a file of up to {MAX_OBJECT_BYTES} bytes"
) -> UnsafeObject:
    where = name if len(name) <= 120 else f"...{name[-120:]}"
    return UnsafeObject(
        f"the exchange's folder holds {found} at '{where}', expected {expected}: it is not opened; somebody "
        "who can write there made it, remove it"
    )


@dataclass(frozen=True)
class RemoteFiles:
    """Files of a storage that fsspec reaches, below a root of it."""

    storage: Any
    root: str

    def read(self, name: str) -> bytes | None:
        path = f"{self.root}/{name}"
        try:
            size = self.storage.info(path).get("size")
            if size is not None and size > MAX_OBJECT_BYTES:
                raise _unsafe(name, f"a file of {size} bytes")
            content: bytes = self.storage.cat_file(path)
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, parts: Parts, if_absent: bool) -> None:
        path = f"{self.root}/{name}"
        if if_absent and self.storage.exists(path):
            return
        if not self._renames:
            self.storage.pipe_file(path, b"".join(parts))
            return
        folder, _, last = path.rpartition("/")
        self.storage.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{last}.{os.getpid()}-{threading.get_ident()}"
        try:
            with self.storage.open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
            self._rename(temporary, path)
        except BaseException:
            if self.storage.exists(temporary):
                self.storage.rm_file(temporary)
            raise

    def names(self, parent: str) -> list[str]:
        try:
            paths = self.storage.ls(f"{self.root}/{parent}", detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def remove(self, name: str) -> None:
        self.storage.rm(f"{self.root}/{name}", recursive=True)

    @property
    def _renames(self) -> bool:
        protocol = self.storage.protocol
        protocols = (protocol,) if isinstance(protocol, str) else protocol
        return any(one in _RENAMING_PROTOCOLS for one in protocols)

    def _rename(self, temporary: str, path: str) -> None:
        if hasattr(self.storage, "ftp"):  # fsspec's sftp: its plain rename refuses to replace
            self.storage.ftp.posix_rename(temporary, path)
        else:
            self.storage.mv(temporary, path)
