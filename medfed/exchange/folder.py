"""Sites and hub meet in shared storage: a network share, SFTP, S3 and alike, whatever fsspec reaches.

For hospitals that allow nothing else. A piece is written aside and renamed where the storage can rename, else
written whole (object storage shows nothing of a half-written object). Nobody need trust the storage: with
`credentials` every manifest is signed. Without them anyone who can write there can pretend to be a site.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec

from medfed.exchange._concurrency import run_bounded
from medfed.exchange._exchange import Exchange
from medfed.exchange._hub_transport import HubTransport
from medfed.exchange._object_store import Buffer, MissingObject, Parts, Unreachable
from medfed.exchange._protocol import wait_for_study
from medfed.exchange._site_transport import SiteTransport
from medfed.wire.signing import load_seal


class Folder(Exchange, frozen=True, tag="folder"):
    """A folder that all sites and the hub can reach: a network share, SFTP, S3 and alike.

    `url` is fsspec's (`/mnt/share/study`, `sftp://host/study`, `s3://bucket/study`), `credentials` the
    folder of this party's key and certificate, `poll_s` the longest pause between two looks (what
    comes soon is looked for more often: the pause is a tenth of what was waited so far), `options`
    what fsspec's storage needs.
    """

    url: str
    credentials: str = ""
    poll_s: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    options: dict[str, Any] = {}  # noqa: RUF012

    def open_hub(self, study: str, folder: Path) -> HubTransport:
        return HubTransport(self._store(), load_seal(self.credentials), study, folder)

    def open_site(self, study: str, site: str, folder: Path) -> SiteTransport:
        return SiteTransport(self._store(), load_seal(self.credentials), study, site, folder)

    def advertised_study(self) -> tuple[str, str]:
        store = self._store()
        try:
            return wait_for_study(store, load_seal(self.credentials))
        finally:
            store.close()

    def _store(self) -> FolderStore:
        return FolderStore(self.url, self.poll_s, self.options)


# Storages whose rename replaces a file at once. Everywhere else an object is written whole or not at all.
_RENAMES = ("file", "local", "sftp", "ssh", "smb")

# The pause between two looks: this share of what was waited so far, at least the first, at most `poll_s`.
# So a look that comes too late costs a tenth of a wait, and a wait of hours some fifty looks more than
# one every `poll_s`.
POLL_SHARE, FIRST_POLL_S = 0.1, 0.02

# How many pieces are under way at once: more hides the latency of object storage, each costs a
# chunk of memory.
_AT_ONCE = 4


class FolderStore:
    """A store in a storage that fsspec reaches."""

    # Object storage costs a request a chunk; a larger chunk costs more to send again after a cut.
    chunk_bytes = 8 << 20
    heartbeat_s = 5.0
    channel = "through shared storage"

    def __init__(self, url: str, poll_s: float = 0.5, options: dict[str, Any] | None = None) -> None:
        import fsspec

        self._fs, self._root = fsspec.core.url_to_fs(
            url,
            use_listings_cache=False,
            skip_instance_cache=not url.startswith("memory:"),
            **(options or {}),
        )
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._renames = any(protocol in _RENAMES for protocol in protocols)
        self._poll_s = poll_s
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="medfed-folder")
        self._closed = threading.Event()

    def put(self, name: str, data: Buffer, once: bool = False) -> None:
        self._put_parts(name, [data], once)

    def _put_parts(self, name: str, parts: Parts, once: bool = False) -> None:
        path = self._path(name)
        self._try(lambda: self._put(path, parts, once), "written to")

    def _put(self, path: str, parts: Parts, once: bool) -> None:
        if once and self._fs.exists(path):
            return
        if not self._renames:
            self._fs.pipe_file(path, b"".join(parts))
            return
        folder, _, last = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        aside = f"{folder}/.{last}.{os.getpid()}-{threading.get_ident()}"
        try:
            with self._fs.open(aside, "wb") as file:
                for part in parts:
                    file.write(part)
            if hasattr(self._fs, "ftp"):  # fsspec's sftp: its plain rename refuses to replace
                self._fs.ftp.posix_rename(aside, path)
            elif "file" in self._fs.protocol:
                os.replace(aside, path)
            else:
                self._fs.mv(aside, path)
        except BaseException:
            if self._fs.exists(aside):
                self._fs.rm_file(aside)
            raise

    def get(self, name: str) -> bytes | None:
        path = self._path(name)

        def read() -> bytes | None:
            try:
                return self._fs.cat_file(path)
            except FileNotFoundError:
                return None

        return self._try(read, "read")

    def put_many(self, pieces: Iterable[tuple[str, Parts]], stored: Callable[[str], None]) -> None:
        jobs = ((name, partial(self._pool.submit, self._put_parts, name, parts)) for name, parts in pieces)
        run_bounded(jobs, lambda name, _: stored(name), _AT_ONCE)

    def get_many(self, names: Sequence[str], take: Callable[[str, Buffer], None], skip: bool = False) -> None:
        def got(name: str, data: bytes | None) -> None:
            if data is None:
                if skip:
                    return
                raise MissingObject(f"chunk {name.rpartition('/')[2].partition('-')[0]} is not in the folder")
            take(name, data)

        jobs = ((name, partial(self._pool.submit, self.get, name)) for name in names)
        run_bounded(jobs, got, _AT_ONCE)

    def delete_rounds(self, study: str, before: int) -> None:
        self._delete(study, lambda side, round: round < before if side == "glob" else round <= before)

    def delete_study(self, study: str) -> None:
        self._delete(study, lambda side, round: True, notices=("now", "coming"))

    def _delete(self, study: str, which: Callable[[str, int], bool], notices: Sequence[str] = ()) -> None:
        space = study[:16] or "none"

        def remove() -> None:
            homes = [("glob", f"glob/{space}")]
            homes += [("up", f"up/{space}/{name}") for name in self._names(f"up/{space}")]
            for side, home in homes:
                for name in self._names(home):
                    numbered = name[:1] == "r" and name[1:].isdigit()
                    if (numbered and which(side, int(name[1:]))) or name in notices:
                        self._fs.rm(self._path(f"{home}/{name}"), recursive=True)

        self._try(remove, "cleared")

    def _names(self, home: str) -> list[str]:
        try:
            return [
                path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._path(home), detail=False)
            ]
        except FileNotFoundError:
            return []

    def wait(self, timeout_s: float) -> None:
        self._closed.wait(min(max(FIRST_POLL_S, timeout_s * POLL_SHARE), self._poll_s))

    def close(self) -> None:
        self._closed.set()
        self._pool.shutdown()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _try(self, call: Callable[[], Any], doing: str) -> Any:
        try:
            return call()
        except FileNotFoundError:
            raise Unreachable(f"the exchange's folder cannot be {doing}: a part of it vanished") from None
        except OSError as error:
            raise Unreachable(
                f"the exchange's folder cannot be {doing}: {error.strerror or type(error).__name__}"
            ) from None
