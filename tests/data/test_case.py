"""What a case shows of itself when it is printed."""

from __future__ import annotations

from pathlib import Path

from .hospital_folder import MARK, folder_of, index, row, token


def test_a_case_prints_no_path_and_no_patient(tmp_path: Path) -> None:
    found = index(folder_of(tmp_path, [row("a")]))
    assert MARK not in repr(found) + str(found) + repr(found.cases) + found.describe()
    assert token("a") in repr(found.cases[0])
