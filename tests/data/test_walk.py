"""A walk enters each real folder once, and none that is hidden or that the system keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hard_series import Series, assert_in_place, write_series

from medfed.data.read import read
from medfed.data.walk import enters, files_below, is_system_folder, walk_once


@pytest.mark.parametrize("name", [".snapshot", "@eaDir", "__MACOSX", "$Recycle.Bin", "lost+found"])
def test_folders_of_the_system(name: str) -> None:
    assert is_system_folder(name)
    assert not is_system_folder(f"P {name}")


def test_each_folder_is_walked_once_in_order(tmp_path: Path) -> None:
    for path in ("b/2", "b/1", "a/3", ".medfed/cache/4", "@eaDir/5"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    os.symlink(tmp_path / "a", tmp_path / "c")
    os.symlink(tmp_path, tmp_path / "b" / "up")
    assert list(walk_once(tmp_path)) == [
        (str(tmp_path), []),
        (str(tmp_path / "a"), ["3"]),
        (str(tmp_path / "b"), ["1", "2"]),
    ]
    assert [path.name for path in files_below(tmp_path)] == ["3", "1", "2"]


def test_a_folder_is_entered_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.symlink(tmp_path / "a", tmp_path / "b")
    entered: set[str] = set()
    assert [enters(str(tmp_path), name, entered) for name in "aba"] == [True, False, False]


def test_no_slice_is_read_out_of_a_recycle_bin(tmp_path: Path) -> None:
    """A slice that somebody deleted must not be a slice of the series again: its neighbours would be even."""
    series = Series()
    files = write_series(tmp_path / "ct", series)
    (tmp_path / "ct" / ".Trash-1000").mkdir()
    files[-1].rename(tmp_path / "ct" / ".Trash-1000" / files[-1].name)
    (volume,) = read(tmp_path / "ct")
    assert_in_place(volume, shape=(7, 5, 5))
