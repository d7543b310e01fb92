"""What a folder holds besides its cases: counted by reason, and named for the hospital alone."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from medfed.data.left_out import describe_left_out, note_left_out

from .hospital_folder import MARK, SECRET, index


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_what_no_case_uses_is_counted_and_named_for_the_hospital_alone(tmp_path: Path) -> None:
    write(
        tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz", f"{MARK}.nii.gz", f"x/{MARK}.csv"
    )
    os.symlink(tmp_path / "gone", tmp_path / "dangling.nii.gz")
    (tmp_path / f"{MARK}.nii.gz").rename(tmp_path / f"x/{MARK}.nii.gz")
    cases = index(tmp_path)
    assert cases.left_out == {
        "nifti files that no case uses": 1,
        "table files that no case uses": 1,
        "links to nothing": 1,
    }
    assert "left out: 1 nifti files that no case uses, 1 table files" in cases.describe()
    assert MARK not in cases.describe()
    line = note_left_out(tmp_path, cases.left_out_files, SECRET)
    assert line.endswith("notes/left-out.csv in .medfed/cache in the data folder")
    with (tmp_path / ".medfed/cache/notes/left-out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["reason", "file"],
        ["nifti files that no case uses", f"x/{MARK}.nii.gz"],
        ["table files that no case uses", f"x/{MARK}.csv"],
    ]
    assert index(tmp_path).left_out == cases.left_out


def test_the_voxels_of_a_header_file_are_used_with_it(tmp_path: Path) -> None:
    write(tmp_path, "images/a.mhd", "images/a.raw", "images/b.mhd", "images/b.raw", "images/c.raw")
    write(tmp_path, "labels/a.mhd", "labels/a.raw", "labels/b.mhd", "labels/b.raw")
    left = index(tmp_path).left_out_files
    assert [path.name for paths in left.values() for path in paths] == ["c.raw"]


def test_a_case_that_a_table_names_over_a_link_is_used(tmp_path: Path) -> None:
    store, site = tmp_path / "store", tmp_path / "site"
    write(store, "a.nii.gz", "b.nii.gz")
    site.mkdir()
    os.symlink(store, site / "scans")
    os.symlink(store / "b.nii.gz", site / "b.nii.gz")
    (site / "cases.csv").write_text("case,image,target\na,scans/a.nii.gz,0\nb,b.nii.gz,1\n")
    assert index(site).left_out == {}


def test_a_series_behind_a_link_in_its_case_s_folder_is_used(tmp_path: Path) -> None:
    site = tmp_path / "site"
    slices = write(tmp_path, "store/a/1.dcm", "store/a/deep/2.dcm", "site/archive/b/3.dcm", "site/c/4.dcm")
    for path in slices.glob("**/*.dcm"):
        path.write_bytes(b"\0" * 128 + b"DICM")
    for case, series in (("p1", tmp_path / "store/a"), ("p2", site / "archive/b")):
        (site / case).mkdir()
        os.symlink(series, site / case / "series")
    (site / "cases.csv").write_text("case,patient,image,target\np1,P1,p1,0\np2,P2,p2,1\n")
    assert [path.name for paths in index(site).left_out_files.values() for path in paths] == ["4.dcm"]


def test_counts_are_one_line() -> None:
    assert describe_left_out({"nifti files that no case uses": 3, "links to nothing": 2}) == (
        "3 nifti files that no case uses, 2 links to nothing"
    )
    assert describe_left_out({}) == ""


def test_nothing_left_out_writes_no_note(tmp_path: Path) -> None:
    assert note_left_out(tmp_path, {}, SECRET) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_cannot_be_written_is_said_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = note_left_out(tmp_path, {"links to nothing": [tmp_path / MARK]}, SECRET, tmp_path / "file")
    assert line == "the names of the files that no case uses could not be written into this site's own folder"
