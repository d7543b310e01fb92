"""Colours of the pages can be read: the contrasts of WCAG 2.2, level AA, in the light and the dark form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import medfed.pipeline.audit_report
from medfed.evaluation.report.templates import FOLDER

# https://www.w3.org/TR/WCAG22/#contrast-minimum: text, and what a figure draws.
TEXT, FIGURE = 4.5, 3.0
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")


AUDIT = Path(medfed.pipeline.audit_report.__file__).with_name("audit_report.html.jinja").read_text("utf-8")


def colours(form: str, style: str = STYLE) -> dict[str, str]:
    """Return the colours of :root, of which the dark form replaces some."""
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in style.split(":root {")[1:3])
    return light if form == "light" else light | dark


def channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(one: list[float], other: list[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(one, other, strict=True)]


def test_black_on_white_is_21_to_1():
    assert contrast([0.0] * 3, [1.0] * 3) == pytest.approx(21.0)
    # #767676 is the lightest grey that passes on white.
    assert contrast(channels("#767676"), [1.0] * 3) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("form", ["light", "dark"])
def test_each_colour_of_text_is_read_on_each_ground(form):
    known = colours(form)
    for ground in ("paper", "wash"):
        for name in ("ink", "soft", "accent", "warn"):
            assert contrast(channels(known[name]), channels(known[ground])) >= TEXT, (name, ground)


@pytest.mark.parametrize("form", ["light", "dark"])
def test_the_darkest_cell_of_the_matrix_is_read(form):
    known = {name: channels(colour) for name, colour in colours(form).items()}
    tint = re.search(r"var\(--share\) \* (\d+)%", STYLE)
    opacity = re.search(r"\.matrix td small \{[^}]*opacity: ([\d.]+)", STYLE)
    cell = mixed(known["accent"], known["paper"], int(tint[1]) / 100)
    assert contrast(known["ink"], cell) >= TEXT
    assert contrast(mixed(known["ink"], cell, float(opacity[1])), cell) >= TEXT
    # The frame of a hospital's own model.
    assert contrast(known["soft"], cell) >= FIGURE


def test_what_differs_in_meaning_does_not_differ_by_colour_alone():
    """The accent and the grey are nearly of one lightness: on paper, or without colours, they are alike."""
    known = colours("light")
    assert contrast(channels(known["accent"]), channels(known["soft"])) < 1.2
    assert re.search(r"\.mark\.hollow \{ fill: var\(--paper\)", STYLE)
    assert re.search(r"\.ci\.wide::after \{ content", STYLE)


@pytest.mark.parametrize("form", ["light", "dark"])
def test_the_audit_page_can_be_read_in_both_forms(form):
    known = {name: channels(colour) for name, colour in colours(form, AUDIT).items()}
    for ground in ("paper", "head", "sent", "refused"):
        assert contrast(known["ink"], known[ground]) >= TEXT
    assert min(contrast(known[name], known["paper"]) for name in ("soft", "warn")) >= TEXT
    # No colour is fixed outside the two forms.
    assert not re.findall(r"#[0-9a-f]{3,8}\b", AUDIT.split("}\nbody {")[1].split("</style>")[0])
