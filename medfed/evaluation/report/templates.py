"""The templates and the style sheet of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2

from medfed.evaluation.metrics import metric_of
from medfed.evaluation.report.formatting import (
    interval,
    is_small_sample,
    metric_title,
    model_name,
    number,
    p_value,
    site_name,
)
from medfed.evaluation.rows import FEDERATED
from medfed.files import format_bytes

FOLDER = Path(__file__).parent

# What templates may call.
_FUNCTIONS: tuple[Callable[..., object], ...] = (
    format_bytes,
    interval,
    is_small_sample,
    metric_of,
    metric_title,
    model_name,
    number,
    p_value,
    site_name,
)


def render(template: str, **values: object) -> str:
    """Return a page made from a template, in which an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update({function.__name__: function for function in _FUNCTIONS}, FEDERATED=FEDERATED)
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, **values)
