"""Examination in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medfed.data.preflight.preflight import check, to_plain

from .conftest import Hospital

SECRET = b"0123456789abcdef" * 2


def test_processes_find_what_one_finds(hospital: Hospital) -> None:
    for _ in range(5):
        hospital.add()
    hospital.add(spoil="image")
    folder = hospital.write()
    one = check(folder, site_secret=SECRET, processes=1)
    two = check(folder, site_secret=SECRET, processes=2)
    assert to_plain(one) == to_plain(two)


@pytest.mark.slow
def test_a_script_that_is_typed_in_or_has_no_main_guard_may_check(hospital: Hospital, tmp_path: Path) -> None:
    for _ in range(8):
        hospital.add()
    text = (
        "from medfed.data.preflight.preflight import check\n"
        f"print(check({str(hospital.write())!r}, site_secret=bytes(32), processes=2).exit_code)\n"
    )
    (tmp_path / "script.py").write_text(text)
    for arguments, typed in (["-"], text), ([str(tmp_path / "script.py")], ""):
        done = subprocess.run(
            [sys.executable, *arguments], input=typed, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
        assert (done.stdout, "Traceback" in done.stderr) == ("0\n", False)
