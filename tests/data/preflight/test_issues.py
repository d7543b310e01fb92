"""The kinds of issue that a preflight knows."""

from __future__ import annotations

from medfed.data.preflight.issues import ISSUE_TYPES


def test_every_meaning_says_what_to_do() -> None:
    for code, meaning in ISSUE_TYPES.items():
        if meaning.severity != "note":
            assert meaning.means, code
            assert meaning.remedy, code
