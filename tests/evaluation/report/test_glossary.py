"""Words are explained on hover and in a list of those that a page uses."""

from __future__ import annotations

import re

import pytest

from medfed.evaluation.report.glossary import TERMS, anchor, definition, glossary, term


def test_a_known_word_has_its_meaning_on_hover_and_another_none():
    abbr = f'<abbr title="{TERMS["Dice"]}">Dice</abbr>'
    assert term("Dice") == f'<a class="term" href="#term-dice">{abbr}</a>'
    assert term("<b>") == "&lt;b&gt;"
    assert definition("hd95") == TERMS["HD95"]


def test_a_metric_describes_itself():
    assert definition("Reliability") == ""
    assert "threshold chosen on validation patients" in definition("Threshold: it is found")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<p>Dice of each model, by Holm</p>", ["Dice", "Holm"]),
        ("<style>.dice { }</style><a class='Holm'>p</a>", ["p"]),
        ("<p>Predicted P values of pooledness</p>", []),
        ("<p>Limits of agreement</p>", ["limits of agreement"]),
    ],
)
def test_the_list_has_the_words_of_the_text_alone(page, words):
    assert [word for word, _ in glossary(page)] == words
    assert all(meaning == TERMS[word] for word, meaning in glossary(page))


def test_what_is_explained_on_hover_is_on_the_list_that_is_printed_and_that_a_touch_leads_to():
    """A metric that is no term describes itself; a finger does not hover, and paper has no title."""
    page = term("Events observed") + term("Calibration error") + term("calibration slope")
    listed = glossary(page)
    assert listed == [
        ("Calibration error", "expected, ten bins of equal width"),
        ("calibration slope", TERMS["calibration slope"]),
        ("Events observed", "count"),
    ]
    named = [anchor(word) for word, _ in listed]
    assert named == ["term-calibration-error", "term-calibration-slope", "term-events-observed"]
    assert re.findall('href="#([^"]*)"', page) == [named[2], named[0], named[1]]
    assert anchor("95 % interval") == "term-95-interval"


def test_meanings_are_short_and_no_sentence_ends_twice():
    assert all(len(meaning) < 120 and not meaning.endswith(".") for meaning in TERMS.values())
