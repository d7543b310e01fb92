"""What a case shows of itself when it is printed."""

from __future__ import annotations

from pathlib import Path

from .hospital_folder import MARK, folder_of, index, row, token


def test_a_case_prints_no_path_and_no_patient(tmp_path: Path) -> None:
    indexed = index(folder_of(tmp_path, [row("a")]))
    assert MARK not in repr(indexed) + str(indexed) + repr(indexed.cases) + indexed.describe()
    assert token("a") in repr(indexed.cases[0])
