"""The survey of a folder: each file once, its format by content, and what could not be opened, counted."""

from __future__ import annotations

import gzip
import os
import socket

import numpy as np
import pytest

from medfed.data.index import index_folder
from medfed.data.layouts._survey import IMAGE_FORMATS, Survey, file_format
from medfed.errors import DataError

PREAMBLE = b"\0" * 128 + b"DICM"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.nii.gz", gzip.compress(b"anything", mtime=0), "nifti"),
        ("a", PREAMBLE, "dicom"),
        ("IM0001", b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "dicom"),
        ("IM0002", b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", "dicom"),
        ("big", b"\0\x08\0\x05CS\0\x0aISO_IR 100", "dicom"),
        ("scan.ima", b"cut", "dicom"),
        ("x.dat", b"\x89PNG\r\n\x1a\nrest", "png"),
        ("photo.png", b"\xff\xd8\xff\xe0", "jpeg"),
        ("a.tif", b"II*\0", "tiff"),
        ("a.nrrd", b"NRRD0004\n", "nrrd"),
        ("a.mhd", b"ObjectType = Image", "metaimage"),
        ("a.csv", b"case,image", "table"),
        ("a.xlsx", b"PK\3\4", "table"),
        ("a.json", b"{}", "json"),
        ("notes.txt", b"hello", "other"),
        ("notes.txt", b"", "empty"),
        ("lost.nii", b"", "nifti"),
        ("ct.nii.gz.part", gzip.compress(b"half of it", mtime=0), "unfinished"),
        ("IM1.dcm.part", PREAMBLE, "dicom"),  # a slice of its series, which is refused for it
    ],
)
def test_a_format_is_recognised_by_content_and_a_damaged_image_is_still_an_image(
    tmp_path, name, content, expected
):
    (tmp_path / name).write_bytes(content)
    assert file_format(tmp_path / name) == expected
    assert Survey.of(tmp_path).files[0].format == expected


def test_folders_files_and_names(tmp_path):
    for name in ("images/b.nii", "images/a.nii", "labels/deep/a.nii", "top.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    survey = Survey.of(tmp_path)
    assert [file.parts for file in survey.below("images")] == [("images", "a.nii"), ("images", "b.nii")]
    assert survey.subfolders() == ("images", "labels")
    assert survey.subfolders("labels") == ("deep",)
    assert survey.named("top.csv").path == tmp_path / "top.csv"
    assert survey.named("a.nii") is None
    assert [file.name for file in survey.folders[("images",)]] == ["a.nii", "b.nii"]
    assert survey.describe() == "3 nifti, 1 table"


def test_links_are_followed_once_and_hidden_entries_are_left_out(tmp_path):
    store, site = tmp_path / "store", tmp_path / "site"
    (store / "p0").mkdir(parents=True)
    (store / "p0" / "ct.nii").write_bytes(b"x")
    (site / ".medfed").mkdir(parents=True)
    (site / ".medfed" / "kept.nii").write_bytes(b"x")
    (site / "._ct.nii").write_bytes(b"x")
    os.symlink(store / "p0", site / "p0")
    os.symlink(site, site / "p0" / "loop")
    os.symlink(store / "nothing", site / "broken.nii")
    survey = Survey.of(site)
    assert [file.parts for file in survey.files] == [("p0", "ct.nii")]
    assert survey.unreadable == {
        "hidden files": 1,
        "links to nothing": 1,
        "links to a folder in which they lie": 1,
    }


def test_what_systems_leave_in_a_folder_is_counted_and_never_read(tmp_path):
    """Recycle bins, previews, resource forks and snapshots hold images, which are no cases."""
    for path in (
        *("p0/ct.nii", "__MACOSX/p0/ct.nii", "@eaDir/ct.nii/SYNO_THUMB.jpg", ".Trash-1000/files/old.nii"),
        *("$RECYCLE.BIN/$R1.nii", "p0/.DS_Store", "p1/.DS_Store"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    (tmp_path / "p2" / "scan").mkdir(parents=True)
    os.symlink(tmp_path / "p0", tmp_path / "p3")
    survey = Survey.of(tmp_path)
    assert [file.parts for file in survey.files] == [("p0", "ct.nii")]
    system = "hidden folders, or folders of the system like a recycle bin, which are not looked into"
    assert survey.unreadable == {
        "hidden files": 2,
        system: 4,
        "empty folders": 2,
        "folders that are read by another path already": 1,
    }


def test_a_link_out_of_the_folder_is_followed_and_counted(tmp_path):
    for path in ("store/p0/ct.nii", "store/p1.nii", "site/p2/ct.nii"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    site = tmp_path / "site"
    os.symlink(tmp_path / "store" / "p0", site / "p0")
    os.symlink(tmp_path / "store" / "p1.nii", site / "p1.nii")
    os.symlink(site / "p2" / "ct.nii", site / "p3.nii")
    survey = Survey.of(site)
    assert [file.parts for file in survey.files] == [
        ("p0", "ct.nii"),
        ("p1.nii",),
        ("p2", "ct.nii"),
        ("p3.nii",),
    ]
    assert (survey.outside, survey.unreadable) == (2, {})


def test_a_link_to_a_folder_around_it_is_never_followed(tmp_path):
    for path in ("other/p9/ct.nii", "site/p1/ct.nii", "store/p2/ct.nii", "store/p3/ct.nii"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    site = tmp_path / "site"
    os.symlink(tmp_path, site / "p1" / "all_hospitals")
    os.symlink(site, site / "p1" / "again")
    os.symlink(tmp_path / "store" / "p2", site / "p2")
    os.symlink(tmp_path / "store", tmp_path / "store" / "p2" / "up")
    survey = Survey.of(site)
    assert [file.parts for file in survey.files] == [("p1", "ct.nii"), ("p2", "ct.nii")]
    assert survey.unreadable == {"links to a folder in which they lie": 3}
    assert survey.outside == 1


def test_a_pipe_and_a_socket_are_counted_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        survey = Survey.of(tmp_path)
    assert survey.files == ()
    assert survey.unreadable == {"devices, pipes or sockets": 2}
    assert survey.describe() == "no file"


def test_nothing_printed_names_a_file(tmp_path):
    (tmp_path / "Meier_Anna").mkdir()
    (tmp_path / "Meier_Anna" / "ct.nii").write_bytes(b"x")
    survey = Survey.of(tmp_path)
    assert "Meier" not in f"{survey!r} {survey.files!r} {survey.describe()} {[*survey.files]!r}"


def test_images_are_the_formats_that_hold_voxels():
    assert {"table", "json", "empty", "other"}.isdisjoint(IMAGE_FORMATS)


def test_archives_are_to_be_unpacked(tmp_path):
    for name in ("a.zip", "b.tar.gz", "c.7z", "IM0001"):
        (tmp_path / name).write_bytes(b"PK\x03\x04" if name == "IM0001" else b"anything")
    (tmp_path / "d.xlsx").write_bytes(b"PK\x03\x04")
    assert Survey.of(tmp_path).describe() == "4 archive, 1 table"
    with pytest.raises(DataError, match=r"\(4 archive, 1 table\) holds nothing .*; unpack the archives; say"):
        index_folder(tmp_path, site_secret=b"7" * 32)


def test_arrays_of_numpy_are_named_with_what_reads_them(tmp_path):
    np.savez(tmp_path / "pneumoniamnist.npz", train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"\(1 arrays\) holds nothing .*a study with data: \{kind: arrays\}"):
        index_folder(tmp_path, site_secret=b"7" * 32)
