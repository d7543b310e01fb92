"""The folder layouts that hospitals have: what speaks for each, and how to list its cases.

To add one, write `data/layouts/<name>.py` with one `Layout` record tagged `<name>`;
tests/contracts/test_layouts.py finds it. A package outside medfed adds one through the entry point group
`medfed.layouts`. A layout reads the survey of a folder and returns the hospital's own case ids and patients;
only `index.py` turns them into tokens, assigns splits and checks the files.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from medfed.data.layouts._layout import CaseError, CaseListing, Layout, ListedCase
from medfed.data.layouts._roles import is_role as is_image_word
from medfed.data.layouts._survey import Survey
from medfed.errors import DataError
from medfed.registry import kind_of, kinds, union

HOW_TO_SAY = (
    "say which it is with `layout` (in `data` of the study, in the site file, or `--layout`), or list the "
    "cases in cases.csv"
)


def layouts() -> tuple[Layout, ...]:
    """Return every layout, in the order in which they are listed."""
    instances = [cast(Layout, kind()) for kind in kinds("layouts").values()]
    return tuple(sorted(instances, key=lambda layout: (layout.order, kind_of(layout))))


def choose_layout(survey: Survey, given: Layout | None = None) -> Layout:
    """Return the given layout, or else the only one for which the folder speaks.

    Evidence of a higher rank decides: a list of cases is not doubted because of how folders are named.

    Raises:
        DataError: if none or several fit; it lists what the folder holds and what each layout would need.
    """
    if given is not None:
        return given
    evidence = {layout: text for layout in layouts() if (text := layout.evidence(survey)) is not None}
    highest = max((layout.rank for layout in evidence), default=0)
    fitting = [layout for layout in evidence if layout.rank == highest]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = "; ".join(f"{kind_of(layout)} ({evidence[layout]})" for layout in fitting)
        raise DataError(
            f"the site's data folder ({survey.describe()}) fits several layouts: {listed}; {HOW_TO_SAY}"
        )
    listed = "; ".join(f"{kind_of(layout)}: {layout.needs}" for layout in layouts())
    formats = {file.format for file in survey.files}
    unpack = "unpack the archives; " if "archive" in formats else ""
    if "arrays" in formats:  # of any layout
        unpack += "numpy's arrays are read by a study with data: {kind: arrays}, or written as images first; "
    raise DataError(
        f"the site's data folder ({survey.describe()}) holds nothing that medfed knows for certain; "
        f"{unpack}{HOW_TO_SAY}. There are: {listed}"
    )


def parse_layout(text: str) -> Layout:
    """Return the layout that a command line names: `class_folders`, or `{kind: pattern, image: ...}`.

    Raises:
        DataError: if it names none.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, str | Mapping):
        raise DataError("layout: expected a name, or settings such as '{kind: pattern, image: ...}'")
    return layout_of(value)


def plain_layout(layout: Layout) -> str | dict[str, Any]:
    """Return a layout as a study file has it: its name, or a mapping if it has settings."""
    plain: dict[str, Any] = msgspec.to_builtins(layout)
    default: dict[str, Any] = msgspec.to_builtins(type(layout)())
    changed = {key: _without_empty(value) for key, value in plain.items() if value != default[key]}
    return {"kind": kind_of(layout), **changed} if changed else kind_of(layout)


def _without_empty(value: Any) -> Any:
    """Return plain values without the keys that hold nothing, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_empty(one) for key, one in value.items() if one is False or one == 0 or one}
    return [_without_empty(one) for one in value] if isinstance(value, list | tuple) else value


def layout_of(value: str | Layout | Mapping[str, Any]) -> Layout:
    """Return a layout by its name, or by a mapping with `kind` and its settings.

    Raises:
        DataError: if there is none of this name, or a setting is missing or unknown.
    """
    if isinstance(value, Layout):
        return value
    name = value if isinstance(value, str) else str(value.get("kind", ""))
    if name not in kinds("layouts"):
        near = difflib.get_close_matches(name, kinds("layouts"), 1)
        meant = f"; did you mean '{near[0]}'?" if near else ";"
        raise DataError(f"layout: no '{name}'{meant} there are {', '.join(kinds('layouts'))}")
    try:
        plain = {"kind": name} if isinstance(value, str) else dict(value)
        return cast(Layout, msgspec.convert(plain, union("layouts")))
    except msgspec.ValidationError as error:
        raise DataError(f"layout: {error}") from None


__all__ = [
    "CaseError",
    "CaseListing",
    "Layout",
    "ListedCase",
    "Survey",
    "choose_layout",
    "is_image_word",
    "layout_of",
    "layouts",
    "parse_layout",
    "plain_layout",
]
