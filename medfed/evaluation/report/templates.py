"""The templates and the style sheet of this folder."""

from __future__ import annotations

from pathlib import Path

import jinja2

from medfed.evaluation.report import formatting
from medfed.files import format_bytes
from medfed.wire.untrusted_text import for_template

FOLDER = Path(__file__).parent


def render(template: str, **values: object) -> str:
    """Return a page made from a template, in which an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=for_template,
    )
    # Templates may use what formatting.py defines and imports, such as number() and metric_of().
    environment.globals.update(vars(formatting), format_bytes=format_bytes)
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, **values)
