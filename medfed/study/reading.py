"""Reads a study or site file: YAML to typed records, with errors that give line and nearest name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from medfed.errors import MedfedError, StudyError
from medfed.study._explain import Lines, describe_value, explain, nearest
from medfed.study._yaml import apply_override, load_yaml
from medfed.study.start import with_bundle_network
from medfed.study.study import Study
from medfed.study.validation import validate

# What a study file should be, in errors.
EXPECTED = "a study (keys such as name, task, sites)"

# Keys under which a list of names may stand in place of names with folders.
LISTED_KEYS = ("sites", "held_out")

_Record = TypeVar("_Record")


def read_study(path: str | Path, overrides: Sequence[str] = (), *, needs_start: bool = True) -> Study:
    """Return the study in a YAML file; `overrides` are such as 'train.epochs=3'.

    Folders in the file are relative to the file; in the study they are absolute. Without `needs_start` the
    file that the study starts from may be gone: a trained model needs it no more.

    Raises:
        StudyError: naming the file, line and key, what was found, what is allowed, and the nearest name.
    """
    path = Path(path)
    study = parse_yaml(read_text(path), path.name, Study, EXPECTED, overrides)
    study = _resolved(study, path.name, path.resolve().parent, needs_start)
    validate(study, path.name)
    return study


def _resolved(study: Study, name: str, folder: Path, needs_start: bool) -> Study:
    """Return a study with absolute paths, and the network of its bundle written out."""

    def absolute(sites: Mapping[str, str | None]) -> dict[str, str | None]:
        return {site: data and str((folder / data).resolve()) for site, data in sites.items()}

    study = msgspec.structs.replace(study, sites=absolute(study.sites), held_out=absolute(study.held_out))
    if (start := study.given_start) is None:
        return study
    place = (folder / start.path).resolve()
    if needs_start and not place.exists():
        raise StudyError(
            f"{name}: start: no such file; give a checkpoint or bundle, relative to the study file"
        )
    try:
        return with_bundle_network(study.starting_from(str(place)))
    except StudyError as error:
        raise StudyError(f"{name}: {error}") from None


def parse_study(text: str, name: str = "study.yaml", overrides: Sequence[str] = ()) -> Study:
    """Return the study in a YAML text, its paths as they are; `name` is the file's name in errors."""
    study = parse_yaml(text, name, Study, EXPECTED, overrides)
    validate(study, name)
    return study


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        StudyError: if the file is missing, with the nearest name in its folder, or if it is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise StudyError(f"{path}: no such file{nearest(path.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as text: {type(error).__name__}") from None


def parse_yaml(
    text: str, name: str, record: type[_Record], expected: str, overrides: Sequence[str] = ()
) -> _Record:
    """Return a YAML text as a record of this type; a study file and a site file are read alike.

    `expected` says in errors what the text should be.

    Raises:
        StudyError: as `read_study`.
    """
    raw, lines = load_yaml(text, name, expected)
    for override in overrides:
        apply_override(raw, override)
    for key in LISTED_KEYS:
        if isinstance(raw.get(key), list):
            raw[key] = _without_folders(raw[key], key, name, lines)
    try:
        return msgspec.convert(raw, record)
    except msgspec.ValidationError as error:
        raise StudyError(explain(str(error), raw, name, lines, overrides, record)) from None
    except MedfedError as error:
        raise StudyError(f"{name}: {error}") from None


def _without_folders(names: list[Any], key: str, file: str, lines: Lines) -> dict[Any, None]:
    for index, name in enumerate(names):
        place = f"{file}:{lines.get((key, index), '?')}: {key}"
        if not isinstance(name, str):
            raise StudyError(f"{place}: found {describe_value(name)}; expected a site's name")
        if name in names[:index]:
            raise StudyError(f"{place}: '{name}' occurs twice")
    return dict.fromkeys(names)
