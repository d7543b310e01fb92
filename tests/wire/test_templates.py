"""Pages from templates: what is escaped, what is one line, and that a missing value is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from medfed.wire.templates import render
from medfed.wire.untrusted_text import for_text_template

HOSTILE = "<b>&\nround 9\x1b[2J"


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_blocks_leave_no_lines_and_a_missing_value_is_an_error(tmp_path: Path) -> None:
    text = (
        "{% for site in sites %}\n  {% if site %}\n{{ site | loud }} & <{{ name }}>\n  {% endif %}\n"
        "{% endfor %}\n"
    )
    template = written(tmp_path, "page.txt.jinja", text)
    sites = ["north", "", "south"]
    filters = {"loud": str.upper}
    assert render(template, filters=filters, sites=sites, name="hub") == "NORTH & <hub>\nSOUTH & <hub>\n"
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render(template, filters=filters, sites=sites)


def test_html_is_escaped_and_characters_that_do_not_show_are_written_out(tmp_path: Path) -> None:
    template = written(tmp_path, "page.html.jinja", "<p>{{ text }}</p>")
    assert render(template, text=HOSTILE) == "<p>&lt;b&gt;&amp;\nround 9\\x1b[2J</p>"


def test_a_value_of_plain_text_is_one_line_where_lines_must_not_be_imitated(tmp_path: Path) -> None:
    template = written(tmp_path, "page.txt.jinja", "{{ text }}")
    assert render(template, text=HOSTILE) == "<b>&\nround 9\\x1b[2J"
    assert render(template, text=HOSTILE, show=for_text_template) == "<b>&\\nround 9\\x1b[2J"


def test_what_templates_share_is_seen_by_macros_that_they_import(tmp_path: Path) -> None:
    written(tmp_path, "macros.txt.jinja", "{% macro twice(x) %}{{ shown(x) }}{{ shown(x) }}{% endmacro %}")
    page = written(tmp_path, "page.txt.jinja", "{% import 'macros.txt.jinja' as m %}{{ m.twice(3) }}")
    assert render(page, shared={"shown": lambda number: f"[{number}]"}) == "[3][3]"
