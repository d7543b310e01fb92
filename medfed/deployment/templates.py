"""Plain text from Jinja templates, which stand beside the modules that fill them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2

from medfed.wire.untrusted_text import for_text_template


def render_text(template: Path, filters: Mapping[str, Callable[..., object]], **values: object) -> str:
    """Return a template's text with these values; an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=False,  # noqa: S701  # no HTML
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=for_text_template,
    )
    environment.filters.update(filters)
    return environment.get_template(template.name).render(values)
