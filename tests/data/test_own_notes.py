"""Lists for the hospital alone: where they lie, who may read them, and that the message names none of it."""

from __future__ import annotations

import csv
import os

from medfed.data.own_notes import write_note

SECRET = b"s" * 32
ROWS = [("Leber, rechts", "3"), ("Tumor", "1")]


def test_a_note_lies_inside_the_data_folder_readable_by_its_owner_alone(tmp_path):
    where = write_note(tmp_path, SECRET, "structures", ("name", "cases"), ROWS)
    assert where == "notes/structures.csv in .medfed/cache in the data folder"
    path = tmp_path / ".medfed" / "cache" / "notes" / "structures.csv"
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "cases"], ["Leber, rechts", "3"], ["Tumor", "1"]]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_two_sites_of_one_account_keep_their_notes_apart(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    for secret in (b"a" * 32, b"b" * 32):
        where = write_note(data, secret, "left-out", ("file",), [("x",)], cache)
        assert where == "notes/left-out.csv in this site's cache folder"
    assert len(list(cache.glob("*/notes/left-out.csv"))) == 2
    assert not list(data.iterdir())


def test_a_name_that_is_no_utf_8_is_written_as_it_is(tmp_path):
    write_note(tmp_path, SECRET, "left-out", ("file",), [(os.fsdecode(b"p\xff.png"),)])
    path = tmp_path / ".medfed" / "cache" / "notes" / "left-out.csv"
    assert path.read_bytes().splitlines()[1] == b"p\xff.png"
