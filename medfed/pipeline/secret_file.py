"""Read a site's secret from its file."""

from __future__ import annotations

from pathlib import Path

from medfed.data.splits import check_secret
from medfed.errors import DataError


def read_secret(path: Path | None) -> bytes | None:
    """Return the content of a secret's file, or None if no file is given.

    Raises:
        DataError: if the file can't be read, or is too short.
    """
    if path is None:
        return None
    try:
        secret = path.read_bytes()
    except OSError:
        raise DataError("the site's secret can't be read; give the path of its file") from None
    check_secret(secret)
    return secret
