"""Channels as files of their own, numbered as nnU-Net does it: case_0000, case_0001."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from medfed.data.case import Fault, ImageSource
from medfed.data.layouts._files import stem
from medfed.data.layouts._survey import File
from medfed.data.refusals import SeveralFilesError, SeveralLabelsError
from medfed.errors import DataError

# The least share of cases that must have a channel for it to be one of the hospital's.
MIN_SHARE = 0.5

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


def split_number(name: str) -> tuple[str, int] | None:
    """Return a case and its channel from a name such as CASE_0001, or None for any other name."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def by_channel(images: Sequence[File]) -> dict[str, dict[int, tuple[Path, ...]]]:
    """Return the files of each case by channel number; one is expected for each.

    Raises:
        DataError: for a file without a number.
    """
    found: dict[str, dict[int, tuple[Path, ...]]] = {}
    for file in images:
        split = split_number(stem(file.path))
        if split is None:
            raise DataError(
                "some images are numbered by channel (_0000) and some are not; rename them so that each is "
                "CASE_0000, CASE_0001, ..., or list the cases in cases.csv"
            )
        channels = found.setdefault(split[0], {})
        channels[split[1]] = (*channels.get(split[1], ()), file.path)
    return found


def usual_count(cases: Collection[Mapping[int, object]]) -> int:
    """Return how many channels a case has: up to the highest number that at least half of the cases have."""
    counts = Counter(number for one in cases for number in one)
    usual = [number for number, count in counts.items() if count >= MIN_SHARE * len(cases)]
    return max(usual, default=0) + 1


def in_order(
    channels: Mapping[int, Sequence[Path]], count: int
) -> tuple[tuple[ImageSource, ...], Fault | None]:
    """Return a case's files in the order of its `count` channels, () for each that has none, and its fault.

    Files of further numbers are no part of it.
    """
    several = [number for number in range(count) if len(channels.get(number, ())) > 1]
    fault = None
    if several:
        numbers = " and ".join(f"_{number:04d}" for number in several)
        what = f"the channel {numbers}" if count > 1 else "its image (as .nii and .nii.gz, or in two formats)"
        fault = Fault(SeveralFilesError, f"it has several files for {what}; keep one")
    return tuple(one_of(channels.get(number, ())) for number in range(count)), fault


def several_labels(labels: Sequence[Path]) -> Fault | None:
    """Return the fault of a case with several files for its label, or None."""
    if len(labels) < 2:
        return None
    words = "it has several files for its label (as .nii and .nii.gz, or in two formats); keep one"
    return Fault(SeveralLabelsError, words)


def one_of(files: Sequence[Path]) -> ImageSource:
    """Return the first of the files found for one image, or () if there is none."""
    return files[0] if files else ()
