"""dataset.json, as the Medical Segmentation Decathlon, nnU-Net and AMOS write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
