"""Atomic writes, locks, and formats."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys

import pytest

from medfed.files import UNFINISHED, format_bytes, lock, replacing, utc_now, write_whole


@pytest.mark.parametrize("durable", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, durable):
    path = tmp_path / "new folder" / "file"
    write_whole(path, "old", durable=durable)

    def fail():
        with replacing(path, durable=durable) as unfinished:
            unfinished.write_text("ne")
            assert unfinished.name == f"file{UNFINISHED}"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_secret_is_never_readable_by_others_not_even_while_it_is_written(tmp_path):
    path = tmp_path / "secret"
    (tmp_path / f"secret{UNFINISHED}").write_text("left behind by a crash, readable by all")
    with replacing(path, mode=0o600) as unfinished:
        assert unfinished.stat().st_mode & 0o777 == 0o600
        unfinished.write_bytes(b"secret")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_is_held_until_the_file_is_closed(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        lock(first)
        with pytest.raises(OSError, match="unavailable"):
            lock(second, wait=False)
    with path.open("w") as third:
        lock(third, wait=False)
        with path.open("w") as other, pytest.raises(BlockingIOError, match="unavailable"):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "module", ["medfed.wire.audit_log", "medfed.privacy.accounting.ledger_file", "medfed.exchange._protocol"]
)
def test_a_system_without_file_locks_imports_medfed_and_is_told_what_needs_them(module):
    code = f"""
import sys
sys.modules["fcntl"] = None
import medfed, medfed.files, medfed.data.read
try:
    import {module}
except medfed.MedfedError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.match(r"(the audit log|the privacy ledger|an exchange .*) needs POSIX file locks", done.stdout)


def test_times_are_utc_to_the_second_and_sizes_decimal():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", utc_now())
    assert [format_bytes(n) for n in (999, 1000, 40e6, 2.5e9)] == ["999 bytes", "1.0 kB", "40.0 MB", "2.5 GB"]
