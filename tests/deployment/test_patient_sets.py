"""The file of the patients whose numbers a hospital has sent."""

from __future__ import annotations

import pytest

from medfed.deployment.patient_sets import patient_sets
from medfed.errors import RunError


def test_what_is_added_is_read_again_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "runs" / "results.jsonl"
    with patient_sets(path, "results") as kept:
        assert kept.sets == []
        kept.add("ab" * 32, frozenset("ba"), "lesion=")
    with patient_sets(path, "results") as kept:
        kept.add("cd" * 32, frozenset("c"))
    with patient_sets(path, "results") as kept:
        assert [(one.study, one.patients, one.what) for one in kept.sets] == [
            ("ab" * 32, ["a", "b"], "lesion="),
            ("cd" * 32, ["c"], ""),
        ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    with patient_sets(path, "results") as kept:
        kept.add("ab" * 32, frozenset("a"))
    with path.open("ab") as file:
        file.write(b'{"time": 3}\n')
    with (
        pytest.raises(
            RunError,
            match=r"results\.jsonl, line 2: of which patients this site sent results before is damaged .* "
            "restore the file from a back-up",
        ),
        patient_sets(path, "results"),
    ):
        pass
