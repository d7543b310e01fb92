"""dataset.json, as the Medical Segmentation Decathlon, nnU-Net and AMOS write it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medfed.data.layouts._layout import NO_PATIENTS, CaseListing, ListedCase
from medfed.data.layouts._survey import Survey
from medfed.errors import DataError

FILE_NAME = "dataset.json"
_EXPECTED = "expected 'labels': {'0': 'background', ...}"


def read_dataset_json(path: Path) -> Mapping[str, Any]:
    """Return the content of dataset.json.

    Raises:
        DataError: if it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{FILE_NAME} cannot be read as a JSON object; restore the file, {_EXPECTED}")
    return content


def required_dataset_json(survey: Survey) -> tuple[Path, Mapping[str, Any]]:
    """Return the path and the content of a folder's dataset.json.

    Raises:
        DataError: if there is none, or it is no JSON object.
    """
    described = survey.named(FILE_NAME)
    if described is None:
        raise DataError(f"the site's data folder has no {FILE_NAME}; restore it, or name another layout")
    return described.path, read_dataset_json(described.path)


def described_listing(
    title: str,
    cases: Iterable[ListedCase],
    content: Mapping[str, Any],
    read: tuple[Path, ...],
    left_out: Mapping[str, tuple[Path, ...]] | None = None,
) -> CaseListing:
    """Return the listing of cases with the names that dataset.json gives to labels and channels.

    content: of dataset.json; empty without one, and nothing is named then.  read, left_out: of CaseListing.

    Raises:
        DataError: if it does not name its labels, or numbers its channels by no numbers.
    """
    names = label_names(content) if content else {}
    return CaseListing(
        title,
        tuple(cases),
        (NO_PATIENTS,),
        class_names(names),
        names,
        channel_names(content),
        read,
        left_out or {},
    )


def label_names(content: Mapping[str, Any]) -> dict[int, str]:
    """Return what dataset.json says the numbers in the labels mean.

    The Decathlon writes {"1": "anterior"}, nnU-Net {"anterior": 1}.

    Raises:
        DataError: if it does not name its labels, names one twice, or has regions of several numbers.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataError(f"{FILE_NAME} does not name its labels; {_EXPECTED}")
    if any(isinstance(value, list) for value in labels.values()):
        raise DataError(
            f"{FILE_NAME} has regions (a name for several numbers, as in nnU-Net's region-based training), "
            "which overlap, and medfed's classes exclude each other; give each number a name of its own "
            "under 'labels'"
        )
    numbers_first = all(str(key).strip().isdecimal() for key in labels)
    pairs = labels.items() if numbers_first else ((value, key) for key, value in labels.items())
    names: dict[int, str] = {}
    for number, name in pairs:
        if isinstance(number, bool) or not str(number).strip().isdecimal() or int(number) in names:
            raise DataError(f"{FILE_NAME} does not give each label one number; {_EXPECTED}")
        names[int(number)] = str(name)
    return dict(sorted(names.items()))


def class_names(names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names in order if they are those of 0, 1, 2, ... without a gap, else none."""
    return tuple(names.values()) if list(names) == list(range(len(names))) else ()


def channel_names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels in order, from 'channel_names' or the Decathlon's 'modality'."""
    named = content.get("channel_names", content.get("modality"))
    if not isinstance(named, dict):
        return ()
    try:
        return tuple(str(named[number]) for number in sorted(named, key=int))
    except (ValueError, TypeError):
        raise DataError(
            f"{FILE_NAME} does not number its channels; expected 'channel_names': {{'0': 'T1', ...}}"
        ) from None
