"""Text of another party shows every character, stays in its line, and is no markup and no formula."""

from __future__ import annotations

import html.parser
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.wire.untrusted_text import (
    MAX_CHARACTERS,
    cleaned,
    for_cell,
    for_html,
    for_log,
    for_template,
    for_terminal,
    for_text_template,
)

HOSTILE = {
    "clears the screen": ("\x1b[2J", "\\x1b[2J"),
    "hides what follows": ("\x1b[8m", "\\x1b[8m"),
    "one byte sequence introducer": ("\x9b2J", "\\x9b2J"),
    "forges a line": ("a\nround 9: north refused", "a\\nround 9: north refused"),
    "forges a line without a newline": ("a\u2028b\u2029c\x85d\x0be", "a\\u2028b\\u2029c\\x85d\\x0be"),
    "overwrites its line": ("a\rb\x08c", "a\\rb\\x08c"),
    "turns the direction": ("\u202eb\u2066c\u200fd", "\\u202eb\\u2066c\\u200fd"),
    "is of no width": ("a\u200bb\u200dc\ufeffd\u2060e", "a\\u200bb\\u200dc\\ufeffd\\u2060e"),
    "is invisible": ("a\u3164b\u115fc\ufe0fd\u2800", "a\\u3164b\\u115fc\\ufe0fd\\u2800"),
    "is no character": ("a\ud800b\ue000c", "a\\ud800b\\ue000c"),
    "tags": ("a\U000e0041b", "a\\U000e0041b"),
}
HONEST = ["[a, b]", "[/data/x]", "[red]", "Größe µm²", "肝臓", "כבד", "C:\\x", "50 % <5 & \"q\" 'p'", ""]

texts = st.text(st.characters(), max_size=60) | st.sampled_from([text for text, _ in HOSTILE.values()])


@pytest.mark.parametrize("text, shown", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_character_that_shows_nothing_is_written_as_its_code(text, shown):
    assert for_log(text) == shown
    assert for_text_template(text) == shown


@pytest.mark.parametrize("text", HONEST)
def test_honest_text_keeps_every_character(text):
    assert for_log(text) == for_terminal(text) == for_template(text) == text


def test_a_space_of_another_width_is_a_space():
    assert for_log("12\u00a0000\u202fml") == "12 000 ml"


def test_a_long_text_is_cut_and_the_rest_counted():
    assert for_log("x" * (MAX_CHARACTERS + 7)) == "x" * MAX_CHARACTERS + "... (7 more characters)"
    assert for_log("abcdef", 4) == "abcd... (2 more characters)"


@given(texts)
@settings(max_examples=300, deadline=None)
def test_every_medium_gets_only_characters_that_show(text):
    for shown in (for_log(text), for_cell(text)):
        assert shown.isprintable()
        assert len(shown.splitlines()) <= 1
    lines = for_terminal(text)
    assert lines.replace("\n", "").isprintable()
    assert lines.count("\n") == text.count("\n")
    for character in lines.replace("\n", ""):
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@given(texts)
@settings(max_examples=200, deadline=None)
def test_a_second_pass_changes_nothing(text):
    assert for_log(for_log(text)) == for_log(text)
    assert for_terminal(for_terminal(text)) == for_terminal(text)


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.data = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.data += data


@given(texts | st.sampled_from(["<script>alert(1)</script>", "'\" onerror=alert(1) x='", "</p><b>"]))
@settings(max_examples=200, deadline=None)
def test_html_reads_it_as_text_and_as_a_value(text):
    page = _Tags()
    page.feed(f"<p>{for_html(text)}</p>")
    page.close()
    assert page.tags == [("p", [])]
    assert page.data == for_terminal(text)
    attribute = _Tags()
    attribute.feed(f'<p title="{for_html(text)}">')
    assert attribute.tags == [("p", [("title", for_terminal(text))])]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)"])
def test_a_cell_is_no_formula(text):
    assert for_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-0.5", "+3", "1e-5", "north", ""])
def test_a_number_and_a_word_stay_what_they_are(text):
    assert for_cell(text) == text


def test_a_long_list_on_a_page_of_text_is_whole():
    assert for_text_template("x" * 5000) == "x" * 5000


def test_values_of_json_are_cleaned_through_and_through():
    value = {"a\n": ["\x1b", {"b": "\u202e"}], "n": 3, "none": None, "t": ("x\r",)}
    assert cleaned(value) == {"a\\n": ["\\x1b", {"b": "\\u202e"}], "n": 3, "none": None, "t": ["x\\r"]}


def test_markup_of_a_template_is_left():
    class Markup(str):
        pass

    markup = Markup("<b>\n</b>")
    assert for_template(markup) is markup
    assert for_template(3) == 3
