"""Walks through a hospital's folder: each real folder once, and none that medfed or the system keeps there.

The survey of a folder and the readers of a series share these rules, so that no reader takes a slice out of a
recycle bin that the survey passed over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Folders that systems keep beside a person's own, in small letters: resource forks that a Mac packs into
# archives, recycle bins, previews of a Synology NAS, snapshots of file servers.
SYSTEM_FOLDERS = frozenset(
    (
        *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"),
    )
)


def is_system_folder(name: str) -> bool:
    """Whether a folder's name says that it is hidden, or that the system keeps it."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def walk_once(
    folder: str | Path, on_error: Callable[[OSError], None] | None = None, *, follow_links: bool = True
) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder at or below a folder, and the names of its files, in order.

    Links to folders are followed, because research copies consist of them; each real folder is entered once,
    so that a link to a parent does not loop. Hidden folders and those of the system or of medfed are not
    entered.
    """
    entered = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=on_error, followlinks=follow_links):
        yield parent, sorted(names)
        own = sorted(name for name in folders if not is_system_folder(name))
        folders[:] = [name for name in own if enters(parent, name, entered)]


def enters(parent: str, name: str, entered: set[str]) -> bool:
    """Whether a folder was not entered before by another path; it is added to the real paths `entered`."""
    real = os.path.realpath(os.path.join(parent, name))
    new = real not in entered
    entered.add(real)
    return new


def files_below(folder: Path, *, follow_links: bool = True) -> list[Path]:
    """Return every file below a folder, in order, as `read` finds them; see `walk_once`."""
    return sorted(
        path
        for parent, names in walk_once(folder, follow_links=follow_links)
        for name in names
        if (path := Path(parent, name)).is_file()
    )
