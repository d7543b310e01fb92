"""Every page of a report has its words, its style and the formatting that all share."""

from __future__ import annotations

from medfed.evaluation.report import templates


def test_a_page_has_the_style_and_may_format_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    (tmp_path / "page.css").write_text("body {}")
    (tmp_path / "some.html.jinja").write_text(
        "{{ style }}|{{ format_bytes(2000) }}|{{ number(0.5) }}|{{ name }}"
    )
    assert (
        templates.render("some.html.jinja", name="<b>")
        == f"body {{}}|{templates.format_bytes(2000)}|0.500|&lt;b&gt;"
    )
