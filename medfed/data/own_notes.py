"""Lists that only the hospital itself may read: names that a message must not quote.

A message is passed on, so it names no file, structure or patient. What a hospital needs to find the place
(which files no case uses, which structures match no class) is written beside its prepared images instead,
readable by its own account alone; the message says that it is there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from medfed.data.cache_location import find_cache_location
from medfed.files import private_folder, write_whole

FOLDER = "notes"


def write_note(
    data: Path,
    site_secret: bytes,
    name: str,
    heading: Sequence[str],
    rows: Iterable[Sequence[str]],
    chosen: Path | None = None,
) -> str:
    """Write a table into the site's own folder and return words that tell the hospital where it is.

    Args:
        data: the site's data folder.
        site_secret: the site's key; it names the site's folder in a cache outside the data folder.
        name: of the file, without ending, such as `left-out`.
        heading: the columns' names.
        rows: the cells.
        chosen: the cache folder that the site file names.
    """
    location = find_cache_location(data, site_secret, chosen)
    folder = location.folder / FOLDER
    private_folder(folder)
    text = io.StringIO()
    csv.writer(text).writerows([heading, *rows])
    # Names of files may hold bytes that are no UTF-8: they are written as they are.
    write_whole(folder / f"{name}.csv", text.getvalue().encode("utf-8", "surrogateescape"), mode=0o600)
    inside = location.folder.is_relative_to(data)
    where = ".medfed/cache in the data folder" if inside else "this site's cache folder"
    return f"{FOLDER}/{name}.csv in {where}"
