from __future__ import annotations

import pytest

from medfed.errors import StudyError
from medfed.study.reading import parse_study


@pytest.mark.parametrize(
    "text, words",
    [
        # Ten lines, each ten times the one before: 10^9 values, were they written out.
        (
            "a0: &a0 [x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
            "aliases",
        ),
        ("a: &a [*a]\n", "aliases"),
        ("a: " + "[" * 5000 + "]" * 5000, "it is nested too deeply to be a study"),
        ("a: " + "[" * 1_000_000, "it is nested too deeply"),
        ("{" * 1_000_000, "it is nested too deeply"),
        ("- " * 500_000, "it is nested too deeply"),
        ("a: " + "[" * 32 + "]" * 32, "at most 32 levels are read"),
        ("a: '" + "x" * (1 << 20) + "'", "has at most 1048576"),
    ],
    ids=["a billion laughs", "itself", "nested", "lists", "maps", "rows", "33 levels", "long"],
)
def test_a_bomb_in_yaml_is_refused_at_once(text, words):
    with pytest.raises(StudyError, match=words) as caught:
        parse_study(text)
    assert len(str(caught.value)) < 300
