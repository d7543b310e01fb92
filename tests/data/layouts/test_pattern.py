"""Patterns of paths, links, and a folder that fits several layouts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medfed.data.index import index_folder
from medfed.data.layouts import layout_of, parse_layout, plain_layout
from medfed.data.layouts.pattern import Pattern
from medfed.data.settings import Images
from medfed.errors import DataError

from ..hospital_folder import MARK, SECRET, index, refused, unreadable


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found(folder: Path, **patterns: object):
    return index_folder(folder, site_secret=SECRET, layout=Pattern(**patterns))


def test_the_more_exact_pattern_takes_a_file(tmp_path: Path) -> None:
    write(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b_seg.nii.gz", "notes.txt")
    cases = found(tmp_path, image="{case}.nii.gz", label="{case}_seg.nii.gz")
    assert [(case.id, case.image[0].name, case.label.name) for case in cases.cases] == [
        ("a", "a.nii.gz", "a_seg.nii.gz"),
        ("b", "b.nii.gz", "b_seg.nii.gz"),
    ]
    assert cases.left_out == {"empty files that no case uses": 1}


def test_class_structure_and_folders_of_any_depth(tmp_path: Path) -> None:
    write(tmp_path, "x/y/sick/P1/ct.nii.gz", "x/well/P2/ct.nii.gz", "x/y/sick/P1/m/liver.nii.gz")
    classes = found(tmp_path, image="**/{class}/{patient}/ct.nii.gz")
    assert {case.patient: (case.target, case.split != "") for case in classes.cases} == {
        "P1": (0, True),
        "P2": (1, True),
    }
    assert classes.class_names == ("sick", "well")
    masks = found(tmp_path, image="**/{patient}/ct.nii.gz", label="**/{patient}/m/{structure}.nii.gz")
    assert [[name for name, _ in case.masks] for case in masks.cases] == [["liver"], []]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({}, "a pattern needs `image`"),
        ({"image": "*.nii.gz"}, "at least one of them"),
        ({"image": "{patient}/*.nii.gz", "label": "{case}.nii.gz"}, "all patterns need the same"),
        ({"image": "{person}/*.nii.gz"}, "unknown placeholder"),
        ({"image": "{patient/*.nii.gz"}, "single brace"),
        ({"image": "{patient}/nothing.nii.gz"}, "no file fits the pattern of image"),
        ({"image": {"a": "{patient}/{case}_t1.nii.gz", "b": "{patient}/{case}_t1.nii.gz"}}, "equally well"),
        ({"image": "{split}/{case}_t1.nii.gz"}, "no split"),
    ],
)
def test_a_pattern_that_does_not_say_enough_is_refused(tmp_path: Path, patterns, message) -> None:
    write(tmp_path, f"{MARK}/1_t1.nii.gz", f"{MARK}/1_t2.nii.gz")
    refused(lambda: found(tmp_path, **patterns), DataError, message)


def test_a_case_without_one_of_its_channels_is_refused_by_token(tmp_path: Path) -> None:
    write(tmp_path, f"{MARK}1/t1.nii.gz", f"{MARK}1/t2.nii.gz", f"{MARK}2/t1.nii.gz")
    image = {"T1": "{patient}/t1.nii.gz", "T2": "{patient}/t2.nii.gz"}
    refusals = unreadable(found(tmp_path, image=image))
    assert list(refusals) == ["2"]
    assert "it has no file for channel 2 of 2" in refusals["2"]


def test_a_case_with_several_files_for_one_is_refused_by_token(tmp_path: Path) -> None:
    write(tmp_path, f"{MARK}1/1_t1.nii.gz", f"{MARK}1/2_t1.nii.gz", f"{MARK}2/1_t1.nii.gz")
    write(tmp_path, f"{MARK}2/1_seg.nii.gz", f"{MARK}2/2_seg.nii.gz")
    patterns = {"image": "{patient}/*_t1.nii.gz", "label": "{patient}/*_seg.nii.gz"}
    refusals = unreadable(found(tmp_path, **patterns))
    assert list(refusals) == ["1", "2"]
    assert "the pattern of image takes 2 files of it" in refusals["1"]
    assert "the pattern of its label takes 2 files" in refusals["2"]


def test_a_layout_is_named_in_a_study_or_on_a_command_line() -> None:
    text = "{kind: pattern, image: '{patient}/*.nii.gz'}"
    layout = parse_layout(text)
    assert layout == Pattern(image="{patient}/*.nii.gz")
    assert plain_layout(layout) == {"kind": "pattern", "image": "{patient}/*.nii.gz"}
    assert plain_layout(parse_layout("class_folders")) == "class_folders"
    assert Images(layout="class_folders").given_layout == layout_of("class_folders")
    with pytest.raises(DataError, match="layout: no 'class_folder'; did you mean 'class_folders'"):
        Images(layout="class_folder")
    with pytest.raises(DataError, match="layout: Object contains unknown field"):
        layout_of({"kind": "paired", "images": "x"})
    with pytest.raises(DataError, match="expected a name"):
        parse_layout("[a]")


def test_links_to_patients_folders_are_followed(tmp_path: Path) -> None:
    store, site = tmp_path / "store", tmp_path / "site"
    site.mkdir()
    for number in range(2):
        write(store, f"P{number}/ct.nii.gz", f"P{number}/seg.nii.gz")
        os.symlink(store / f"P{number}", site / f"P{number}")
    cases = index(site)
    assert [case.patient for case in cases.cases] == ["P0", "P1"]
    assert cases.left_out == {}


def test_a_folder_that_fits_two_layouts_is_refused_with_both(tmp_path: Path) -> None:
    write(tmp_path, f"images/{MARK}.nii.gz", f"labels/{MARK}.nii.gz", f"scans/{MARK}.dcm")
    refused(lambda: index(tmp_path), DataError, "fits several layouts: paired (", "dicom_tree (", "--layout")
    paired = index_folder(tmp_path, site_secret=SECRET, layout=parse_layout("paired"))
    assert len(paired.cases) == 1
