"""The header fields that list a file: its series, its patient, and why it is no slice of a volume."""

from __future__ import annotations

from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, make_slice, segmentation, structure_set, write
from pydicom import Dataset

from medfed.data.dicom.listing_header import (
    LOCALIZER,
    NO_POSITION,
    OTHER_IMAGE,
    DamagedFile,
    ListingHeader,
    read_listing_header,
)

SERIES = Series(shape=(2, 3, 4))
FRAME = np.ones((3, 4), bool)


def header_of(ds, path: Path) -> ListingHeader:
    header = read_listing_header(write(ds, path))
    assert isinstance(header, ListingHeader)
    return header


def slice_with(**values: object):
    ds = make_slice(SERIES, 0)
    for name, value in values.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def test_a_slice_says_its_series_patient_and_place(tmp_path: Path) -> None:
    ds = slice_with(
        PatientID="P1", PatientName="Meier^Anna^^", PatientBirthDate="19400211", SeriesDescription="axial"
    )
    header = header_of(ds, tmp_path / "a.dcm")
    assert (header.patient, header.name, header.birth_date) == ("P1", "meier^anna", "19400211")
    uids = SERIES.uids
    assert (header.study, header.series, header.frame) == (uids["study"], uids["series"], uids["frame"])
    assert (header.instance, header.description) == (ds.SOPInstanceUID, "axial")
    assert (header.modality, header.slices, header.placed, header.non_volume) == ("CT", 1, True, "")
    assert (header.is_label, header.is_projection, header.weighting, header.references) == (
        False,
        False,
        "",
        (),
    )
    assert "Meier" not in repr(header)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, LOCALIZER),
        ({"Modality": "OT"}, OTHER_IMAGE),
        ({"ImagePositionPatient": None}, NO_POSITION),
        ({"ImageOrientationPatient": None}, NO_POSITION),
        ({"ImagePositionPatient": None, "Modality": "DX"}, ""),
    ],
)
def test_why_an_image_is_no_slice_of_a_volume(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    header = header_of(slice_with(**values), tmp_path / "a.dcm")
    assert header.non_volume == reason
    assert header.is_projection == (values.get("Modality") == "DX")


def item(**values: object) -> Dataset:
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def test_labels_name_the_series_that_they_are_drawn_on(tmp_path: Path) -> None:
    seg = segmentation(SERIES, [(1, 0, FRAME)])
    seg.ReferencedSeriesSequence = hs.Items([item(SeriesInstanceUID="1.2"), item(SeriesInstanceUID="1.3")])
    rt = structure_set(SERIES, {1: [(0, [(0, 0), (2, 0), (2, 2)])]})
    study = item(RTReferencedSeriesSequence=hs.Items([item(SeriesInstanceUID="1.4")]))
    frame = item(RTReferencedStudySequence=hs.Items([study]))
    rt.ReferencedFrameOfReferenceSequence = hs.Items([frame])
    for ds, modality, series in ((seg, "SEG", ("1.2", "1.3")), (rt, "RTSTRUCT", ("1.4",))):
        header = header_of(ds, tmp_path / f"{modality}.dcm")
        assert (header.modality, header.is_label, header.references) == (modality, True, series)


def cut_in(ds, path: Path, value: str) -> ListingHeader | DamagedFile:
    """Return what is read of a file that ends within a value."""
    whole = write(ds, path).read_bytes()
    path.write_bytes(whole[: whole.index(value.encode()) + len(value) - 1])
    return read_listing_header(path)


def test_a_damaged_file_still_says_its_series_if_it_can(tmp_path: Path) -> None:
    ds = slice_with(PatientID="P1", ImageComments="a long comment", ImagePositionPatient=[1.5, 2.25, 3.125])
    path = tmp_path / "cut.dcm"
    assert cut_in(ds, path, "1.5\\2.25\\3.125") == DamagedFile(path, SERIES.uids["series"], "P1")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "text.dcm").write_text("no header")
    for name in ("empty.dcm", "text.dcm"):
        assert read_listing_header(tmp_path / name) == DamagedFile(tmp_path / name)


def test_a_damaged_report_is_no_damaged_image(tmp_path: Path) -> None:
    path = tmp_path / "cut.dcm"
    cut = cut_in(slice_with(Modality="SR", ImagePositionPatient=[1.5, 2.25, 3.125]), path, "1.5\\2.25\\3.125")
    assert isinstance(cut, DamagedFile)
    assert cut.non_volume == "a damaged report, presentation state or label"


def test_frames_without_a_position_of_each_are_no_volume(tmp_path: Path) -> None:
    header = header_of(slice_with(NumberOfFrames=7), tmp_path / "a.dcm")
    assert (header.slices, header.non_volume) == (7, NO_POSITION)
