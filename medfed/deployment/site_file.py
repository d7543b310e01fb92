"""A hospital's own file: where its data are, how it reaches the hub, what it allows. It
never leaves the hospital.

    name: north
    data: /srv/images
    exchange: {kind: nats, credentials: credentials}
    policy: {minimum_cases: 20, privacy: [clip_noise]}

It is read like a study file: strict, with the line, the key and the nearest name in every error. Paths
are relative to it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal

import msgspec

from medfed.deployment.policy import Policy
from medfed.errors import StudyError
from medfed.exchange import Exchange
from medfed.exchange.memory import Memory
from medfed.study.reading import parse_yaml, read_text
from medfed.study.study import AnyExchange, Count, SiteName

# As many random bytes as the tokens' and splits' HMAC-SHA256 can use.
SECRET_BYTES = 32
MIN_SECRET_BYTES = 16


class SiteFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One hospital.

    name: as it is enrolled.  data: its folder of images, or its CSV file.  exchange: how it reaches the hub.
    secret: the file that salts tokens and splits, made at the first use; who loses it gets other splits.
    out: the folder under which each study gets a run folder, and where its agreements are kept.  policy: what
    studies may do here.  cache: the folder where a study with `data.cache: disk` keeps prepared images, if
    not inside the data folder.  devices: how many GPUs (or processes) train one model.  accelerator: `auto`
    takes a GPU if there is one.  start: the checkpoint that a study begins with, where one does; it is held
    to the digest that was agreed to.
    """

    name: SiteName
    data: str
    exchange: AnyExchange
    secret: str = "secret"
    out: str = "runs"
    policy: Policy = Policy()
    cache: str | None = None
    devices: Count = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    start: str | None = None


def read_site(path: str | Path) -> SiteFile:
    """Return the site in a YAML file, its paths made absolute.

    Raises:
        StudyError: naming the file, the line and the key path, what was found and what is allowed.
    """
    path = Path(path)
    expected = "a site (keys such as name, data, exchange)"
    found = parse_yaml(read_text(path), path.name, SiteFile, expected)
    if isinstance(found.exchange, Memory):
        raise StudyError(
            f"{path.name}: exchange.kind: 'memory' joins sites of one process; a hospital reaches its hub by "
            "'nats' or "
            f"'folder'"
        )
    folder = path.resolve().parent
    return msgspec.structs.replace(
        found,
        data=str(folder / found.data),
        secret=str(folder / found.secret),
        out=str(folder / found.out),
        cache=None if found.cache is None else str(folder / found.cache),
        start=found.start and str(folder / found.start),
        exchange=resolve_paths(found.exchange, folder),
    )


def resolve_paths(exchange: Exchange, folder: Path) -> Exchange:
    """Return an exchange whose relative paths are taken from a folder."""
    changes = {}
    credentials, url = getattr(exchange, "credentials", ""), getattr(exchange, "url", "")
    if credentials:
        changes["credentials"] = str(folder / credentials)
    if url and ":" not in url:  # a path and not fsspec's protocol
        changes["url"] = str(folder / url)
    return msgspec.structs.replace(exchange, **changes)


def secret_of(path: Path) -> bytes:
    """Return the site's secret, made at the first use, readable by its owner alone.

    Raises:
        StudyError: if it cannot be read, is too short, or others can read it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_secret(path)
    except OSError as error:
        raise StudyError(f"secret: its file cannot be made: {error.strerror}") from None
    made = secrets.token_bytes(SECRET_BYTES)
    with os.fdopen(handle, "wb") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    return made


def _read_secret(path: Path) -> bytes:
    try:
        found, mode = path.read_bytes(), path.stat().st_mode & 0o777
    except OSError as error:
        raise StudyError(f"secret: its file cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise StudyError(
            f"secret: its file has mode {mode:04o}, others than its owner may use it; `chmod 600` it, and if "
            "someone had a "
            f"look, put a new one in its place before the next study"
        )
    if len(found) < MIN_SECRET_BYTES:
        raise StudyError(
            f"secret: its file holds {len(found)} bytes, at least {MIN_SECRET_BYTES} are needed; remove it "
            "and a new one "
            f"is made"
        )
    return found
