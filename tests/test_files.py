"""Atomic writes, locks, and formats."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys

import pytest

from medfed.files import (
    UNFINISHED,
    describe_exposed,
    format_bytes,
    lock,
    private_files,
    replacing,
    shared_mode,
    utc_now,
    write_whole,
)


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


@pytest.fixture
def open_umask():
    """The umask under which whatever is created is everybody's."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder):
    return {path.name: path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}


def test_what_is_written_is_its_owners_whatever_the_umask(tmp_path, open_umask):
    write_whole(tmp_path / "a" / "b" / "file", "text")
    assert modes(tmp_path / "a") == {"a": 0o700, "b": 0o700, "file": 0o600}


def test_what_others_write_meanwhile_is_the_owners_too(tmp_path, open_umask):
    with private_files():
        with private_files():  # as a command calls a function that holds it, too
            (tmp_path / "one").mkdir()
        (tmp_path / "one" / "two").write_text("by another library")
        assert shared_mode() == 0o666
    (tmp_path / "after").write_text("as ever")
    assert modes(tmp_path / "one") == {"one": 0o700, "two": 0o600}
    assert (tmp_path / "after").stat().st_mode & 0o777 == 0o666
    os.umask(0o027)
    with private_files():
        assert shared_mode() == 0o640
        assert shared_mode(0o777) == 0o750


def test_files_that_others_can_read_are_counted(tmp_path, open_umask):
    runs = tmp_path / "our runs"
    assert describe_exposed(runs) == ""
    (runs / "closed").mkdir(parents=True)
    (runs / "closed" / "inside").write_text("behind a closed door")
    (runs / "closed").chmod(0o700)
    write_whole(runs / "own", "own")
    assert describe_exposed(runs) == ""
    (runs / "old").mkdir()
    for name in ("cases.jsonl", "last.ckpt"):
        (runs / "old" / name).write_text("old")
    notes = describe_exposed(runs)
    assert notes.startswith("2 files of earlier runs can be read by other accounts")
    assert notes.endswith(f"chmod -R go= '{runs}'")
    runs.chmod(0o700)
    assert describe_exposed(runs) == ""


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


def test_a_lock_is_seen_while_it_is_held(tmp_path):
    from medfed.files import is_locked, lock

    path = tmp_path / "lock"
    assert not is_locked(path)
    with path.open("wb") as file:
        assert not is_locked(path)
        lock(file)
        assert is_locked(path)
    assert not is_locked(path)
