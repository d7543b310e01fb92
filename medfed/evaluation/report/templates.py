"""The templates and the style sheet of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent


def environment() -> Environment:
    """Return the environment that reads the templates; an undefined name is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def style() -> str:
    """Return the style sheet that every page contains."""
    return (_FOLDER / "page.css").read_text(encoding="utf-8")
