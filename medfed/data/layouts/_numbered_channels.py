"""Channels as files of their own, numbered as nnU-Net does it: case_0000, case_0001."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medfed.data.layouts._files import stem
from medfed.data.layouts._layout import CaseError
from medfed.data.layouts._survey import File
from medfed.errors import DataError, ImageError

_NUMBERED = re.compile(r"(.+)_(\d{4})")


def is_numbered(images: Sequence[File], labels: Sequence[File]) -> bool:
    """Whether all images are numbered and no label has a number of its own.

    A series of cases named `scan_0000`, `scan_0001` with labels of the same names is one file per case.
    """
    names = {stem(file.path) for file in images}
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if not names or not all(matches):
        return False
    cases = {match[1] for match in matches if match}
    labelled = {stem(file.path) for file in labels}
    return not labelled & names and bool(labelled & cases)


def by_channel(images: Sequence[File]) -> dict[str, dict[int, Path]]:
    """Return the files of each case by channel number.

    Raises:
        DataError: for a file without a number, or two of one.
    """
    found: dict[str, dict[int, Path]] = {}
    for file in images:
        match = _NUMBERED.fullmatch(stem(file.path))
        if match is None:
            raise DataError(
                "some images are numbered by channel (_0000) and some are not; rename them so that each is "
                "CASE_0000, CASE_0001, ..., or list the cases in cases.csv"
            )
        channels = found.setdefault(match[1], {})
        if int(match[2]) in channels:
            raise CaseError(match[1], "it has two files for one channel; keep one")
        channels[int(match[2])] = file.path
    return found


def in_order(case: str, channels: dict[int, Path], count: int) -> tuple[Path, ...]:
    """Return a case's files in the order of their channels.

    Raises:
        CaseError: if one of `count` channels is missing, or there is another one.
    """
    if sorted(channels) != list(range(count)):
        numbers = ", ".join(f"_{number:04d}" for number in sorted(channels)) or "none"
        raise CaseError(
            case,
            f"it has the channels {numbers}, the hospital's cases have _0000 to _{count - 1:04d}; restore "
            "the missing file or remove the case",
            ImageError,
        )
    return tuple(channels[number] for number in range(count))
