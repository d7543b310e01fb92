"""Structures of segmentations and structure sets: number, name and code as the header says them."""

from __future__ import annotations

from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, segmentation, structure_set, write, write_series
from pydicom import Dataset

from medfed.data.class_names import Structure
from medfed.data.dicom.file import open_dicom
from medfed.data.dicom.structures import decode, find_label_object, structures_of
from medfed.errors import LabelError

SERIES = Series(shape=(2, 3, 4))
FRAME = np.ones((3, 4), bool)


def structures(ds: Dataset, path: Path) -> tuple[Structure, ...]:
    file = open_dicom(str(write(ds, path)))
    assert file is not None
    return structures_of(file)


def test_segments_are_listed_by_number_with_label_and_code(tmp_path: Path) -> None:
    ds = segmentation(SERIES, [(2, 0, FRAME), (5, 1, FRAME)])
    for item, title in zip(ds.SegmentSequence, ("Läsion", "liver"), strict=True):
        item.SegmentLabel = title
    ds.SpecificCharacterSet = "ISO_IR 192"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "4147007", "SCT", "Mass"
    ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = hs.Items([code])
    ds.SegmentSequence[1].SegmentedPropertyTypeCodeSequence = hs.Items([])
    expected = (Structure(2, "Läsion", "Mass"), Structure(5, "liver", ""))
    assert structures(ds, tmp_path / "seg.dcm") == expected


def test_a_region_of_interest_that_nobody_drew_is_empty(tmp_path: Path) -> None:
    ds = structure_set(SERIES, {1: [(0, [(0, 0), (2, 0), (2, 2)])], 4: []})
    listed = structures(ds, tmp_path / "rt.dcm")
    assert [(one.number, one.empty) for one in listed] == [(1, False), (4, True)]
    assert [one.name for one in listed] == [str(item.ROIName) for item in ds.StructureSetROISequence]


@pytest.mark.parametrize(
    ("character_set", "text", "expected"),
    [
        ("ISO_IR 100", "Läsion".encode("latin-1"), "Läsion"),
        ("ISO_IR 192", "Läsion ".encode(), "Läsion"),
        (None, "Läsion".encode(), "Läsion"),  # UTF-8 without saying so
        (None, b"L\xe4sion", None),  # neither ASCII nor UTF-8
        ("NO SUCH SET", b"liver", "liver"),
    ],
)
def test_names_are_decoded_by_the_headers_character_set(tmp_path, character_set, text, expected) -> None:
    ds = hs.make_slice(SERIES, 0)
    if character_set is not None:
        ds.SpecificCharacterSet = character_set
    ds.PatientName = "X"
    path = tmp_path / "a.dcm"
    if character_set == "NO SUCH SET":
        ds.SpecificCharacterSet = "ISO_IR 100"
        write(ds, path)
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"NO SUCH SE"))
    else:
        write(ds, path)
    file = open_dicom(str(path))
    assert file is not None
    decoded = decode(text, file.elements)
    if expected is None:
        assert decoded.startswith("L")
        assert decoded.endswith("sion")
    else:
        assert decoded == expected


def test_the_only_label_object_of_a_folder_is_found_among_images(tmp_path: Path) -> None:
    write_series(tmp_path, SERIES)
    (tmp_path / "notes.txt").write_text("none")
    assert find_label_object(tmp_path) is None
    assert find_label_object(tmp_path / "notes.txt") is None
    (tmp_path / "deep").mkdir()
    path = write(segmentation(SERIES, [(1, 0, FRAME)]), tmp_path / "deep" / "seg.dcm")
    for place in (tmp_path, path):
        file = find_label_object(place)
        assert file is not None
        assert structures_of(file)[0].number == 1
    write(segmentation(SERIES, [(1, 0, FRAME)]), tmp_path / "other.dcm")
    with pytest.raises(
        LabelError, match=r"^the folder holds 2 segmentations or structure sets; name the file"
    ):
        find_label_object(tmp_path)
