"""The folder that medfed keeps in a hospital's data folder, and where prepared images lie.

Prepared images are patients' images, so by default they lie where the hospital already guards those: in
`.medfed/cache` inside the site's data folder, on the same disk, under the same rules for backup and deletion.
Nothing that looks for images looks in there. A hospital that wants them elsewhere (a fast local disk, an
export that is mounted read-only) names a folder in its site file (`cache`) or in MEDFED_CACHE.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME = ".medfed"
# Hexadecimal digits in the name of a site's own folder, where sites share a cache.
SITE_FOLDER = 16

# What a run says where the data folder takes no files; a path would tell the log's readers how the
# site is built.
READ_ONLY = (
    "the data folder can't be written to, so prepared images are kept in this account's own cache folder, outside "
    "it; set `cache` in the site file (or MEDFED_CACHE) to choose where, and `medfed purge` deletes them"
)


@dataclass(frozen=True, repr=False)
class CacheLocation:
    """Where a site keeps prepared images; `note` is a line to be said where it is not inside the data folder."""

    folder: Path
    note: str = ""


def find_cache_location(
    data: str | Path, site_secret: bytes, chosen: str | Path | None = None
) -> CacheLocation:
    """Return where a site keeps prepared images; nothing is made yet.

    The folder that the site file chose; else MEDFED_CACHE; else inside the data folder; else, where that is
    read-only, the account's cache folder. Outside its data folder a site has a folder of its own, so that
    two sites of one account can be purged apart.
    """
    own = site_folder(site_secret)
    elsewhere = chosen or os.environ.get("MEDFED_CACHE")
    if elsewhere:
        return CacheLocation(Path(elsewhere).expanduser() / own)
    if os.access(data, os.W_OK | os.X_OK):
        return CacheLocation(data_cache_folder(data))
    return CacheLocation(account_cache() / own, READ_ONLY)


def site_folder(site_secret: bytes) -> str:
    """Return the name of a site's own folder in a cache that sites share; it tells nothing of the secret."""
    return hashlib.sha256(b"medfed/cache/" + site_secret).hexdigest()[:SITE_FOLDER]


def is_site_folder(name: str) -> bool:
    """Whether a folder is called as a site's own in a shared cache."""
    return is_hex(name, SITE_FOLDER)


def is_hex(name: str, length: int) -> bool:
    """Whether a name is of this many hexadecimal digits."""
    return len(name) == length and set(name) <= set("0123456789abcdef")


def data_cache_folder(data: str | Path) -> Path:
    """Return the cache folder inside a data folder."""
    return Path(data) / NAME / "cache"


def account_cache() -> Path:
    """Return the cache folder of this account, by the XDG rules."""
    return (Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "medfed").expanduser()


def shared_caches() -> list[Path]:
    """Return the folders outside any data folder where this account's sites may keep prepared images."""
    named = os.environ.get("MEDFED_CACHE")
    return [*([Path(named).expanduser()] if named else []), account_cache()]


def remove_if_empty(data: str | Path) -> None:
    """Remove the cache folder inside a data folder, and medfed's own around it, where nothing
    is left in them.
    """
    for folder in (data_cache_folder(data), data_cache_folder(data).parent):
        try:
            folder.rmdir()
        except OSError:
            return


def private_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, each for its owner alone."""
    if not folder.is_dir():
        private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def files_below(folder: Path) -> list[Path]:
    """Return every file of a folder and below it, in order; links to folders are not followed."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = skip_cache_folder(folders)
        found += [path for name in names if (path := Path(where, name)).is_file()]
    return sorted(found)


def skip_cache_folder(folders: list[str]) -> Iterator[str]:
    """Yield names of folders, without that of medfed's own."""
    return (name for name in folders if name != NAME)
