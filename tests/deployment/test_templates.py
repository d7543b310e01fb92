"""Plain text from templates."""

from __future__ import annotations

import jinja2
import pytest

from medfed.deployment.templates import render_text


def test_values_and_filters_are_filled_in_unescaped_and_a_missing_one_is_an_error(tmp_path):
    template = tmp_path / "page.jinja"
    template.write_text("{% for site in sites %}\n{{ site | loud }} & <{{ name }}>\n{% endfor %}\n")
    text = render_text(template, {"loud": str.upper}, sites=["north", "south"], name="hub")
    # A block's own line leaves no empty one behind, and nothing is escaped: it is no HTML.
    assert text == "NORTH & <hub>\nSOUTH & <hub>\n"
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render_text(template, {"loud": str.upper}, sites=["north"])
