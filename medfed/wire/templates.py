"""Pages from Jinja templates, in which a text that anybody may have sent shows as text and nothing more.

A template stands beside the module that fills it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medfed.wire.untrusted_text import for_template


def render(
    template: Path,
    *,
    show: Callable[[Any], Any] = for_template,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    shared: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """Return a template filled with values; an undefined name is an error.

    Values are escaped in HTML (`.html.jinja`) alone. show: what becomes of each value before that;
    `for_text_template` for a page whose lines a value must not imitate.  filters: the template's own.
    shared: what templates that it includes or imports see, too.

    Raises:
        jinja2.UndefinedError: if the template uses a name that is not given.
    """
    import jinja2  # when a page is made, as commands must start quickly

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        finalize=show,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters or {})
    environment.globals.update(shared or {})
    return environment.get_template(template.name).render(values)
