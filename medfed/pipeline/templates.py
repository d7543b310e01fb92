"""Render the templates beside this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medfed.wire.untrusted_text import for_template


def render(template: str, **values: Any) -> str:
    """Return a template of this folder filled with values, which are escaped in HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        finalize=for_template,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
