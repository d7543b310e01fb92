"""Settings of data that contradict themselves are refused."""

from __future__ import annotations

from typing import Any

import pytest

from medfed.data.settings import Table
from medfed.errors import DataError


def settings_of(**changes: Any) -> Table:
    return Table(
        **{
            "features": ("age", "pain", "rate"),
            "target": "disease",
            "categorical": {"pain": ("typical", "none")},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"features": ()}, "features is empty"),
        ({"features": ("age", "age"), "categorical": {}}, "lists a column twice"),
        ({"target": "age"}, "only copy it"),
        ({"time": "T"}, "go together"),
        ({"standardise": "fixed"}, "has no centre"),
        ({"categorical": {"slope": ("up",)}}, "not in features"),
    ],
)
def test_settings_that_contradict_themselves(changes: dict, word: str) -> None:
    with pytest.raises(DataError, match=word):
        settings_of(**changes)
