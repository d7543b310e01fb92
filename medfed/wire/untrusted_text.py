"""Text that another party wrote, made safe for where it is shown: one function per medium.

A reason, a name or a class may hold anything: terminal sequences that clear a screen or hide what follows,
characters that turn the reading direction or show nothing, line breaks that forge a line of a log, HTML, a
spreadsheet's formulas. Whatever medfed logs, prints or renders passes through here, at the place where it
is written out, so that no caller can forget it. Printable text keeps every character.

    for_log        one line                           audit log, rounds.jsonl, warnings, consent page
    for_terminal   lines                              progress, messages of commands
    for_html       lines, with markup escaped         pages; templates use `for_template`
    for_cell       one line that is no formula        CSV
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# The longest text of another party that is kept; the rest is counted.
MAX_CHARACTERS = 2000

# Characters that show nothing although Unicode calls them letters, marks or symbols: fillers, blanks,
# joiners and variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

# Characters that begin a formula in a spreadsheet.
_FORMULA = ("=", "+", "-", "@")


def for_log(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    r"""Return the text as one line in which every character shows; what shows nothing is written as its code.

    >>> for_log("round 1\n\x1b[2Jnorth refused")
    'round 1\\n\\x1b[2Jnorth refused'
    >>> for_log("an honest [a, b] and Größe")
    'an honest [a, b] and Größe'
    """
    left = len(text) - max_characters
    kept = text if left <= 0 else text[:max_characters]
    shown = kept if _shows(kept) else "".join(map(_visible, kept))
    return shown if left <= 0 else f"{shown}... ({left} more characters)"


def for_terminal(text: str) -> str:
    r"""Return lines in which every character shows, for a terminal that is given no markup.

    >>> for_terminal("first\nsecond\r\x1b[8m")
    'first\nsecond\\r\\x1b[8m'
    """
    return "\n".join(for_log(line, max(len(line), 1)) for line in text.split("\n"))


def for_html(text: str) -> str:
    r"""Return lines for an HTML page, in its text or a quoted attribute.

    >>> for_html("<b>\u202e&")
    '&lt;b&gt;\\u202e&amp;'
    """
    return html.escape(for_terminal(text), quote=True)


def for_template(value: Any) -> Any:
    """Return a value for a template that escapes HTML itself; markup made by medfed is left as it is."""
    return for_terminal(value) if type(value) is str else value


def for_text_template(value: Any) -> Any:
    """Return a value for a template of plain text: the whole on one line, so that it poses as no other."""
    return for_log(value, max(len(value), 1)) if isinstance(value, str) else value


def for_cell(text: str) -> str:
    """Return the text for a cell of a CSV table, which a spreadsheet then takes for no formula.

    >>> for_cell("=HYPERLINK(1)"), for_cell("-0.5")
    ("'=HYPERLINK(1)", '-0.5')
    """
    shown = for_log(text)
    return f"'{shown}" if shown.startswith(_FORMULA) and not _is_number(shown) else shown


def cleaned(value: Any) -> Any:
    """Return a plain value (of JSON) in which every text and every key went through `for_log`."""
    if isinstance(value, str):
        return for_log(value)
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(one) for key, one in value.items()}
    return [cleaned(one) for one in value] if isinstance(value, (list, tuple)) else value


def _shows(text: str) -> bool:
    return text.isprintable() and not _INVISIBLE.search(text)


def _visible(character: str) -> str:
    if _shows(character):
        return character
    if unicodedata.category(character) == "Zs":  # a space of another width, such as a French one
        return " "
    return character.encode("unicode_escape").decode("ascii")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
