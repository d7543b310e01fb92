"""The templates of this folder, filled with the words, numbers and style that all pages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medfed.evaluation.report import formatting
from medfed.evaluation.report.glossary import anchor, term
from medfed.files import format_bytes
from medfed.wire import templates

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Return a page made from a template of this folder, in which an undefined name is an error.

    Templates may use what formatting.py defines and imports, such as number() and metric_of().
    """
    shared = {**vars(formatting), "format_bytes": format_bytes, "term": term, "anchor": anchor}
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return templates.render(FOLDER / template, shared=shared, style=style, **values)
