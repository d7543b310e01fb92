"""From which files a series is read, whose a damaged file is, and which label belongs to which series."""

from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pytest
from hard_series import Series, assert_in_place, make_slice, write, write_series
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medfed.data.case import Case, paths_of
from medfed.data.case_reading import read_image
from medfed.data.dicom.listing_header import ListingHeader
from medfed.data.layouts._dicom_series import match_labels, without_short
from medfed.data.preflight.preflight import check
from medfed.errors import DataError, ImageError

from ..hospital_folder import index
from .dicom_folders import put

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"


def test_slices_that_lack_the_id_stay_in_their_series(tmp_path: Path) -> None:
    series = Series()
    files = put(tmp_path / "a", series, PatientID="P1")
    for path in files[:3]:
        ds = pydicom.dcmread(path)
        ds.PatientID = ""
        ds.save_as(path)
    (case,) = index(tmp_path).cases
    assert case.patient == "P1"
    assert_in_place(read_image(case.image), shape=(7, 5, 6))


def test_a_series_of_which_every_header_is_cut_is_a_case_that_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / str(number), PatientID=f"P{number}", SeriesInstanceUID=generate_uid())
    for path in (tmp_path / "0").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    indexed = index(tmp_path)
    assert len(indexed.cases) == 3
    assert any(note.startswith("1 series have no header that can be read") for note in indexed.notes)
    refused = [case for case in indexed.cases if not _readable(case)]
    assert [paths_of(case.image[0])[0].parent.name for case in refused] == ["0"]


def _readable(case: Case) -> bool:
    message = ""
    try:
        read_image(case.image)
    except ImageError as error:
        message = str(error)
    assert not message or "truncated" in message or "no DICOM file" in message
    return not message


def test_a_cut_header_refuses_each_series_that_may_lack_it(
    tmp_path: Path,
) -> None:
    # Its own header does not name its series: each series in the folder may lack a slice.
    for _ in range(2):
        put(tmp_path / "flat", SeriesInstanceUID=generate_uid(), StudyInstanceUID="1.2.3")
    last = sorted((tmp_path / "flat").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:300])
    indexed = index(tmp_path)
    assert [_readable(case) for case in indexed.cases] == [False, False]
    # Where the header goes as far as the series, only that one is refused.
    whole = sorted((tmp_path / "flat").iterdir())[0].read_bytes()
    last.write_bytes(whole[: whole.index(b"\x28\x00\x02\x00US") + 4])
    assert sorted(_readable(case) for case in index(tmp_path).cases) == [False, True]


def test_a_cut_header_among_several_patients_is_a_case_of_its_own(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / "flat", SeriesInstanceUID=generate_uid(), PatientID=f"P{number}")
    last = sorted((tmp_path / "flat").iterdir())[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:300])
    assert sorted(_readable(case) for case in index(tmp_path).cases) == [False, True, True, True]
    last.write_bytes(whole[: whole.index(b"\x18\x00\x50\x00DS") + 4])  # behind the patient's ID
    indexed = index(tmp_path)
    assert [case.patient for case in indexed.cases if not _readable(case)] == ["P2"]
    assert len(indexed.cases) == 3


def test_a_file_that_is_dicom_by_name_only_is_a_refused_case(tmp_path: Path) -> None:
    put(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0001.dcm").write_bytes(b"not what its name says" * 20)
    (tmp_path / "b" / "0002.dcm").touch()
    assert sorted(_readable(case) for case in index(tmp_path).cases) == [False, True]


def test_links_to_patients_and_files_without_preamble(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number in range(3):
        put(store / str(number) / "ct", PatientID=f"P{number}", SeriesInstanceUID=generate_uid())
    for path in (store / "2" / "ct").iterdir():
        ds = pydicom.dcmread(path)
        pydicom.dcmwrite(
            path.with_suffix(""), Dataset(ds), implicit_vr=True, little_endian=True, force_encoding=True
        )
        path.unlink()
    site = tmp_path / "site"
    site.mkdir()
    for number in range(3):
        os.symlink(store / str(number), site / f"p{number}")
    indexed = index(site)
    assert sorted(case.patient for case in indexed.cases) == ["P0", "P1", "P2"]
    for case in indexed.cases:
        assert_in_place(read_image(case.image), shape=(7, 5, 6))


def test_what_is_no_volume_is_counted_by_kind_and_stops_nobody(tmp_path: Path) -> None:
    put(tmp_path / "ct")
    put(tmp_path / "capture", SOPClassUID=SECONDARY_CAPTURE, SeriesInstanceUID="1.2.1")
    put(tmp_path / "ct", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.2")
    put(tmp_path / "short", Series(shape=(2, 5, 7)), SeriesInstanceUID="1.2.3")
    ds = make_slice(Series(), 0)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DOSE_REPORT
    ds.Modality = "SR"
    del ds.PixelData, ds.Rows, ds.Columns
    write(ds, tmp_path / "ct" / "dose.dcm")

    def screenshot(ds: Dataset, _: int) -> None:
        ds.SeriesInstanceUID, ds.ImageType = "1.2.4", ["DERIVED", "SECONDARY"]
        del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing

    write_series(tmp_path / "ct", Series(), screenshot)
    indexed = index(tmp_path)
    (case,) = indexed.cases
    assert_in_place(read_image(case.image), shape=(7, 5, 6))
    assert indexed.left_out == {
        "DICOM files (a localizer)": 6,
        "DICOM files (a secondary capture, a picture of a screen)": 6,
        "DICOM files (a structured report)": 1,
        "DICOM files (an image of a series of fewer than 5 slices, like a localizer)": 2,
        "DICOM files (an image without a position in the patient, like a picture of a screen)": 6,
    }


def test_captures_with_their_place_are_cases_where_the_folder_holds_no_other_volume(tmp_path: Path) -> None:
    for number in range(2):
        uids = {"SeriesInstanceUID": f"1.2.{number}", "PatientID": f"P{number}"}
        put(tmp_path / f"p{number}", Series(), SOPClassUID=SECONDARY_CAPTURE, **uids)
    indexed = index(tmp_path)
    assert [case.patient for case in indexed.cases] == ["P0", "P1"]
    assert_in_place(read_image(indexed.cases[0].image), shape=(7, 5, 6))
    codes = [problem.code for problem in check(tmp_path, processes=1).problems]
    assert codes == ["duplicate_across_splits", "secondary_capture"]
    put(tmp_path / "ct", Series(), SeriesInstanceUID="1.2.9", PatientID="P9")
    indexed = index(tmp_path)
    assert [case.patient for case in indexed.cases] == ["P9"]
    assert indexed.left_out == {"DICOM files (a secondary capture, a picture of a screen)": 12}


def test_a_folder_of_captures_alone_says_what_it_holds(tmp_path: Path) -> None:
    """Mammograms of CBIS-DDSM, beside masks of the same kind: only a table can say which is which."""
    put(tmp_path, Series(), SOPClassUID=SECONDARY_CAPTURE, Modality="MG")
    found = (
        r"holds no case \(6 dicom; left out: 6 DICOM files \(a secondary capture, a picture of a screen\)\)"
    )
    with pytest.raises(DataError, match=rf"{found}; add cases.*cases\.csv, a pattern and class folders"):
        index(tmp_path)


def test_a_folder_of_several_series_and_a_series_in_several_folders(tmp_path: Path) -> None:
    flat = [Series(shape=(n, 5, 7)) for n in (6, 8)]
    for series in flat:
        write_series(tmp_path / "flat", series)
    spread = write_series(tmp_path / "disc1", Series(shape=(10, 5, 7)))
    (tmp_path / "disc2").mkdir()
    for path in spread[5:]:
        path.rename(tmp_path / "disc2" / path.name)
    indexed = index(tmp_path)
    shapes = sorted(read_image(case.image).shape for case in indexed.cases)
    assert shapes == [(7, 5, 6), (7, 5, 8), (7, 5, 10)]
    for case in indexed.cases:
        assert_in_place(read_image(case.image))


def label(
    path: str, *, patient: str = "", references: tuple[str, ...] = (), frame: str = ""
) -> ListingHeader:
    return member(path, patient=patient, modality="SEG", references=references, frame=frame)


def member(path: str, **values: object) -> ListingHeader:
    plain: dict[str, object] = dict.fromkeys(
        (
            "patient",
            "name",
            "birth_date",
            "study",
            "series",
            "frame",
            "instance",
            "non_volume",
            "description",
        ),
        "",
    )
    plain |= {"path": Path(path), "modality": "CT", "references": (), "slices": 1, "placed": True}
    return ListingHeader(**{**plain, "weighting": "", **values})  # type: ignore[arg-type]


def test_a_label_belongs_to_the_series_that_it_references_or_else_to_the_only_one_in_its_frame() -> None:
    series = {
        ("P1", "1.1"): [member("a", series="1.1", frame="9.1")],
        ("P2", "1.1"): [member("b", series="1.1", frame="9.2")],  # a UID that two patients share
        ("P3", "1.3"): [member("c", series="1.3", frame="9.3")],
        ("P3", "1.4"): [member("d", series="1.4", frame="9.3")],
    }
    numbers = {key: number for number, key in enumerate(series)}
    labels = [
        label("of P2", patient="P2", references=("1.1",)),
        label("of nobody who can be told", references=("1.1",)),
        label("of another patient", patient="P9", references=("1.3",)),
        label("by frame", frame="9.2"),
        label("of two series in one frame", frame="9.3"),
        label("of an unknown series in a known frame", references=("1.9",), frame="9.1"),
    ]
    assert dict(match_labels(series, numbers, labels)) == {1: [Path("of P2"), Path("by frame")]}


def test_series_of_few_slices_are_apart_unless_they_are_radiographs_or_hold_many_frames() -> None:
    series = {
        ("P", "four files"): [member(str(n)) for n in range(4)],
        ("P", "five files"): [member(str(n)) for n in range(5)],
        ("P", "one file of five frames"): [member("x", slices=5)],
        ("P", "radiograph"): [member("x", modality="DX", placed=False)],
    }
    long, short = without_short(series)
    assert [uid for _, uid in short] == ["four files"]
    assert len(long) == 3
