"""The folder layouts that hospitals have: how to recognise each, and how to list its cases.

To add one, write `data/layouts/<name>.py` with one `Layout` record tagged `<name>`;
tests/contracts/test_layouts.py finds it. A package outside medfed adds one through the entry point group
`medfed.layouts`. A layout returns the hospital's own case ids and patients; only `index.py` turns them into
tokens, assigns splits and checks the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from medfed.data.layouts._layout import CaseError, CaseListing, Layout, ListedCase
from medfed.registry import kind_of, kinds


def layouts() -> tuple[Layout, ...]:
    """Return every layout, in the order in which they are tried."""
    instances = [cast(Layout, kind()) for kind in kinds("layouts").values()]
    return tuple(sorted(instances, key=lambda layout: (layout.order, kind_of(layout))))


def recognise(folder: Path) -> Layout | None:
    """Return the first layout that recognises the folder, or None."""
    return next((layout for layout in layouts() if layout.recognises(folder)), None)


__all__ = ["CaseError", "CaseListing", "Layout", "ListedCase", "layouts", "recognise"]
