"""Sites and hub meet in shared storage: a network share, SFTP, S3 and the like, whatever fsspec reaches.

For hospitals that allow nothing else. An object is written under a temporary name and renamed if the
storage can rename, otherwise written directly (object storage never shows half-written objects). With
`credentials` every manifest is signed, so nobody needs to trust the storage. Without them anyone who can
write there can pose as a site. What else somebody puts there is not opened: see `_shared_files.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from medfed.exchange._concurrency import run_bounded
from medfed.exchange._hub_transport import HubTransport
from medfed.exchange._object_store import Buffer, Parts, Unreachable, UnsafeObject, pass_on
from medfed.exchange._offers import wait_for_offers
from medfed.exchange._protocol import log as warnings_log
from medfed.exchange._record import Exchange, Offer
from medfed.exchange._shared_files import LocalFiles, RemoteFiles, SharedFiles
from medfed.exchange._site_transport import SiteTransport
from medfed.exchange._study_store import space_of
from medfed.wire.signing import load_seal


class Folder(Exchange, frozen=True, tag="folder"):
    """A folder that all sites and the hub can reach: a network share, SFTP, S3 and the like.

    `url` is a URL for fsspec (`/mnt/share/study`, `sftp://host/study`, `s3://bucket/study`), `credentials`
    the folder with this party's key and certificate, and `options` what fsspec's storage needs. `poll_s` is
    the longest pause between two polls; a pause is a tenth of the time waited so far, so that something
    expected soon is polled more often.
    """

    url: str
    credentials: str = ""
    poll_s: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    options: dict[str, Any] = {}  # noqa: RUF012

    def addresses(self) -> tuple[str, ...]:
        return (without_password(self.url),)

    def open_hub(self, study_digest: str, folder: Path) -> HubTransport:
        return HubTransport(self._store(), load_seal(self.credentials), study_digest, folder)

    def open_site(self, study_digest: str, site: str, folder: Path) -> SiteTransport:
        return SiteTransport(self._store(), load_seal(self.credentials), study_digest, site, folder)

    def offered_studies(
        self,
        site: str,
        *,
        known: Collection[str] = (),
        max_wait_s: float | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> list[Offer]:
        return wait_for_offers(
            self._store(), load_seal(self.credentials), site, known=known, max_wait_s=max_wait_s, log=log
        )

    def _store(self) -> FolderStore:
        return FolderStore(self.url, self.poll_s, self.options)


def without_password(url: str) -> str:
    """Return a URL without the name, password and query by which a storage is entered."""
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


# The pause between two polls: this share of the time waited so far, at least the minimum, at most
# `poll_s`. So a late poll costs a tenth of a wait, and a wait of hours only some fifty polls more than
# one every `poll_s`.
POLL_SHARE, MIN_POLL_S = 0.1, 0.02

# How many objects are transferred at once: more hide the latency of object storage, and each costs a chunk of
# memory.
_MAX_TRANSFERS = 4

_T = TypeVar("_T")


class FolderStore:
    """An object store in a storage that fsspec reaches."""

    # Object storage costs one request per chunk; a larger chunk costs more to send again
    # after a disconnection.
    chunk_bytes = 8 << 20
    heartbeat_s = 5.0
    settle_s = 3600.0
    description = "through shared storage"

    def __init__(self, url: str, poll_s: float = 0.5, options: dict[str, Any] | None = None) -> None:
        import fsspec

        storage, root = fsspec.core.url_to_fs(
            url,
            use_listings_cache=False,
            skip_instance_cache=not url.startswith("memory:"),
            **(options or {}),
        )
        local = "file" in storage.protocol
        self._files: SharedFiles = LocalFiles(root) if local else RemoteFiles(storage, root)
        self._poll_s = poll_s
        self._pool = ThreadPoolExecutor(_MAX_TRANSFERS, thread_name_prefix="medfed-folder")
        self._closed = threading.Event()

    def put(self, name: str, data: Buffer, if_absent: bool = False) -> None:
        self._put_parts(name, [data], if_absent)

    def _put_parts(self, name: str, parts: Parts, if_absent: bool = False) -> None:
        def write() -> None:
            try:
                self._files.write(name, parts, if_absent)
            except UnsafeObject as error:  # tried again, until somebody has removed it
                raise Unreachable(str(error)) from None

        self._checked(write, "written to")

    def get(self, name: str) -> bytes | None:
        return self._checked(lambda: self._files.read(name), "read")

    def put_many(self, objects: Iterable[tuple[str, Parts]], on_stored: Callable[[str], None]) -> None:
        jobs = ((name, partial(self._pool.submit, self._put_parts, name, parts)) for name, parts in objects)
        run_bounded(jobs, lambda name, _: on_stored(name), _MAX_TRANSFERS)

    def get_many(
        self, names: Sequence[str], on_object: Callable[[str, Buffer], None], skip_missing: bool = False
    ) -> None:
        jobs = ((name, partial(self._pool.submit, self.get, name)) for name in names)
        run_bounded(jobs, pass_on(on_object, skip_missing), _MAX_TRANSFERS)

    def delete_rounds(self, study_digest: str, before: int, updates: bool = True) -> None:
        self._delete(
            study_digest,
            lambda side, round: round < before if side == "glob" else updates and round <= before,
        )

    def delete_update(self, prefix: str) -> None:
        parent, _, last = prefix.rpartition("/")

        def delete() -> None:
            if last in self._listed(parent):
                self._files.remove(prefix)

        self._checked(delete, "cleared")

    def delete_study(self, study_digest: str) -> None:
        self._delete(study_digest, lambda side, round: True, control=("current", "announced"))

    def _delete(
        self, study_digest: str, is_old: Callable[[str, int], bool], control: Sequence[str] = ()
    ) -> None:
        """Delete the rounds for which `is_old` (of `glob` or `up`, and the round), and control messages.

        Where something else than a folder stands in a site's place, there is nothing to delete.
        """
        space = space_of(study_digest)

        def delete() -> None:
            parents = [f"glob/{space}", *(f"up/{space}/{name}" for name in self._listed(f"up/{space}"))]
            for parent in parents:
                side = parent.partition("/")[0]
                for name in self._listed(parent):
                    is_round = name[:1] == "r" and name[1:].isdecimal()
                    if (is_round and is_old(side, int(name[1:]))) or name in control:
                        self._files.remove(f"{parent}/{name}")

        self._checked(delete, "cleared")

    def _listed(self, parent: str) -> list[str]:
        try:
            return self._files.names(parent)
        except UnsafeObject as error:
            warnings_log.warning("%s", error)
            return []

    def wait(self, timeout_s: float) -> None:
        self._closed.wait(min(max(MIN_POLL_S, timeout_s * POLL_SHARE), self._poll_s))

    def close(self) -> None:
        self._closed.set()
        self._pool.shutdown()

    def _checked(self, call: Callable[[], _T], doing: str) -> _T:
        """Return what `call` returns; an OSError becomes `Unreachable`."""
        try:
            return call()
        except FileNotFoundError:
            raise Unreachable(f"the exchange's folder cannot be {doing}: a part of it has vanished") from None
        except OSError as error:
            raise Unreachable(
                f"the exchange's folder cannot be {doing}: {error.strerror or type(error).__name__}"
            ) from None
