"""The location of prepared images: `.medfed/cache` in a hospital's data folder, unless it names another.

Prepared images are patients' images, so by default they lie where the hospital already protects those: inside
the site's data folder, on the same disk, under the same rules for backup and deletion. No search for images
enters that folder. A hospital that wants them elsewhere (a fast local disk, an export that is mounted
read-only) names a folder in its site file (`cache`) or in MEDFED_CACHE.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

NAME = ".medfed"
# Hexadecimal digits in the name of a site's own folder in a cache that sites share.
SITE_FOLDER_DIGITS = 16

# The note of a run whose data folder is read-only; it names no path, which would describe the site to the
# log's readers.
READ_ONLY = (
    "the data folder can't be written to, so prepared images are kept in this account's own cache folder, "
    "outside it; set `cache` in the site file (or MEDFED_CACHE) to choose where, and `medfed purge` deletes "
    "them"
)


@dataclass(frozen=True, repr=False)
class CacheLocation:
    """Where a site keeps prepared images; `note` is a line to print if the data folder is read-only."""

    folder: Path
    note: str = ""


def find_cache_location(
    data: str | Path, site_secret: bytes, chosen: str | Path | None = None
) -> CacheLocation:
    """Return where a site keeps prepared images; no folder is made yet.

    The first that applies: the folder that the site file names (`chosen`), MEDFED_CACHE, a folder inside the
    data folder, or, if that is read-only, the account's cache folder. Outside its data folder a site has a
    folder of its own, so that two sites of one account can be purged separately.
    """
    own = site_folder(site_secret)
    elsewhere = chosen or os.environ.get("MEDFED_CACHE")
    if elsewhere:
        return CacheLocation(Path(elsewhere).expanduser() / own)
    if os.access(data, os.W_OK | os.X_OK):
        return CacheLocation(data_cache_folder(data))
    return CacheLocation(account_cache() / own, READ_ONLY)


def site_folder(site_secret: bytes) -> str:
    """Return the name of a site's own folder in a shared cache; it reveals nothing of the secret."""
    return hashlib.sha256(b"medfed/cache/" + site_secret).hexdigest()[:SITE_FOLDER_DIGITS]


def is_site_folder(name: str) -> bool:
    """Whether a name is that of a site's own folder in a shared cache."""
    return is_hex(name, SITE_FOLDER_DIGITS)


def is_hex(name: str, length: int) -> bool:
    """Whether a name consists of this many hexadecimal digits."""
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
    """Remove the cache folder inside a data folder, and `.medfed` around it, if they are empty."""
    for folder in (data_cache_folder(data), data_cache_folder(data).parent):
        try:
            folder.rmdir()
        except OSError:
            return
