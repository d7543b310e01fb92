"""Which series of a tree are cases, which files they are read from, and what becomes of everything else."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pydicom
import pytest
from hard_series import Series, assert_in_place, make_slice, write, write_series
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medfed.data.case import Case, paths_of
from medfed.data.case_reading import read_image
from medfed.data.index import Index, index_folder
from medfed.data.layouts._dicom_choice import SeriesChoice
from medfed.data.layouts._survey import Survey
from medfed.data.layouts.dicom_tree import DicomTree
from medfed.data.preflight.preflight import check
from medfed.data.settings import Images
from medfed.errors import DataError, ImageError

from ..hospital_folder import SECRET, index, unreadable

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"


def put(folder: Path, series: Series | None = None, **values: object) -> list[Path]:
    """Write a series with these header values, and return its files."""

    def edit(ds: Dataset, _: int) -> None:
        for name, value in values.items():
            setattr(ds, name, value)

    return write_series(folder, series or Series(), edit)


def studies_in_splits(found: Index) -> dict[str, set[str]]:
    """Return the splits of each study, read from the files."""
    splits = defaultdict(set)
    for case in found.cases:
        path = paths_of(case.image[0])[0]
        file = sorted(path.iterdir())[0] if path.is_dir() else path
        splits[str(pydicom.dcmread(file).StudyInstanceUID)].add(case.split)
    return splits


# --- F7: patients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patient", "name"), [("", ""), ("ANONYMOUS", "ANONYMOUS"), ("0000", "x"), ("17", "P^One"), ("n/a", "")]
)
def test_where_patient_ids_tell_nobody_apart_a_study_is_never_in_two_splits(
    tmp_path: Path, patient: str, name: str
) -> None:
    for number in range(12):
        study = generate_uid()
        for part in ("a", "b"):  # two series of one visit, each with a frame of reference of its own
            put(
                tmp_path / f"{number}{part}",
                PatientID=patient,
                PatientName=name,
                StudyInstanceUID=study,
                SeriesInstanceUID=generate_uid(),
            )
    found = index(tmp_path)
    assert found.patients == 12
    assert all(len(splits) == 1 for splits in studies_in_splits(found).values())
    assert len({case.split for case in found.cases}) > 1
    (note,) = [note for note in found.notes if "do not say whose they are" in note]
    assert note.startswith("24 series")
    assert "count as 12 patients" in note


def test_without_ids_a_frame_of_reference_or_a_name_links_studies(tmp_path: Path) -> None:
    shared = generate_uid()
    for number in range(4):
        name = "Same^Person" if number > 1 else f"Other^{number}"
        frame = shared if number < 2 else generate_uid()
        put(
            tmp_path / str(number),
            PatientID="",
            PatientName=name,
            StudyInstanceUID=generate_uid(),
            SeriesInstanceUID=generate_uid(),
            FrameOfReferenceUID=frame,
        )
    found = index(tmp_path)
    assert found.patients == 2
    assert [
        len({case.split for case in found.cases if case.patient == who})
        for who in {case.patient for case in found.cases}
    ] == [1, 1]


def test_ids_that_tell_patients_apart_decide(tmp_path: Path) -> None:
    for number in range(6):  # one study UID and one frame of reference in all, as careless copies have
        put(
            tmp_path / str(number),
            PatientID=f"P{number // 2}",
            SeriesInstanceUID=generate_uid(),
            StudyInstanceUID="1.2.3",
            FrameOfReferenceUID="1.2.4",
        )
    found = index(tmp_path)
    assert sorted({case.patient for case in found.cases}) == ["P0", "P1", "P2"]
    assert not found.notes


def test_two_ids_in_one_study_are_one_patient(tmp_path: Path) -> None:
    for number, patient in enumerate(("P1", "P1-b", "P2", "P3")):
        study = "1.2.3" if number < 2 else generate_uid()
        put(tmp_path / patient, PatientID=patient, StudyInstanceUID=study, SeriesInstanceUID=generate_uid())
    found = index(tmp_path)
    assert found.patients == 3
    assert "1 patients have several PatientIDs in one study and count as one each" in found.notes


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


# --- F9: damaged files --------------------------------------------------------------------------------------


def test_a_series_of_which_every_header_is_cut_is_a_case_that_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / str(number), PatientID=f"P{number}", SeriesInstanceUID=generate_uid())
    for path in (tmp_path / "0").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    found = index(tmp_path)
    assert len(found.cases) == 3
    assert any(note.startswith("1 series have no header that can be read") for note in found.notes)
    refused = [case for case in found.cases if not _readable(case)]
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
    found = index(tmp_path)
    assert [_readable(case) for case in found.cases] == [False, False]
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
    found = index(tmp_path)
    assert [case.patient for case in found.cases if not _readable(case)] == ["P2"]
    assert len(found.cases) == 3


def test_a_file_that_is_dicom_by_name_only_is_a_refused_case(tmp_path: Path) -> None:
    put(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0001.dcm").write_bytes(b"not what its name says" * 20)
    (tmp_path / "b" / "0002.dcm").touch()
    assert sorted(_readable(case) for case in index(tmp_path).cases) == [False, True]


# --- F10: links and files without preamble ------------------------------------------------------------------


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
    found = index(site)
    assert sorted(case.patient for case in found.cases) == ["P0", "P1", "P2"]
    for case in found.cases:
        assert_in_place(read_image(case.image), shape=(7, 5, 6))


# --- F11: what is no volume ---------------------------------------------------------------------------------


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
    found = index(tmp_path)
    (case,) = found.cases
    assert_in_place(read_image(case.image), shape=(7, 5, 6))
    assert found.left_out == {
        "DICOM files (a localizer)": 6,
        "DICOM files (a secondary capture, a picture of a screen)": 6,
        "DICOM files (a structured report)": 1,
        "DICOM files (an image of a series of fewer than 5 slices, like a localizer)": 2,
        "DICOM files (an image without a position in the patient, like a picture of a screen)": 6,
    }


def test_radiographs_are_cases_where_there_are_no_volumes(tmp_path: Path) -> None:
    def radiograph(ds: Dataset, k: int) -> None:
        ds.Modality, ds.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.PatientID = f"P{k}"
        del ds.ImagePositionPatient, ds.ImageOrientationPatient

    write_series(tmp_path / "dx", Series(shape=(3, 5, 7), signed=False, intercept=0, slope=1), radiograph)
    found = index(tmp_path)
    assert sorted(case.patient for case in found.cases) == ["P0", "P1", "P2"]
    assert all(read_image(case.image).shape == (7, 5, 1) for case in found.cases)
    put(tmp_path / "ct")
    found = index(tmp_path)
    assert len(found.cases) == 1
    assert found.left_out == {"DICOM files (a radiograph beside volumes)": 3}


# --- F13: series and folders --------------------------------------------------------------------------------


def test_a_folder_of_several_series_and_a_series_in_several_folders(tmp_path: Path) -> None:
    flat = [Series(shape=(n, 5, 7)) for n in (6, 8)]
    for series in flat:
        write_series(tmp_path / "flat", series)
    spread = write_series(tmp_path / "disc1", Series(shape=(10, 5, 7)))
    (tmp_path / "disc2").mkdir()
    for path in spread[5:]:
        path.rename(tmp_path / "disc2" / path.name)
    found = index(tmp_path)
    shapes = sorted(read_image(case.image).shape for case in found.cases)
    assert shapes == [(7, 5, 6), (7, 5, 8), (7, 5, 10)]
    for case in found.cases:
        assert_in_place(read_image(case.image))


def mr(folder: Path, description: str, study: str, slices: int = 6, **values: object) -> None:
    series = Series(shape=(slices, 5, 7), modality="MR", slope=1.0, intercept=0.0)
    put(
        folder,
        series,
        SeriesDescription=description,
        StudyInstanceUID=study,
        FrameOfReferenceUID="1.2.5",
        **values,
    )


def test_chosen_series_of_a_study_are_the_channels_of_one_case(tmp_path: Path) -> None:
    for number in range(3):
        who = {"PatientID": f"P{number}"}
        mr(tmp_path / f"{number}f", "AX FLAIR FS", f"1.2.{number}", **who)
        mr(tmp_path / f"{number}t", "T1 mprage", f"1.2.{number}", **who)
        if number != 1:
            mr(tmp_path / f"{number}t2", "t2_tse", f"1.2.{number}", **who)
        mr(tmp_path / f"{number}t2", "t2_tse_thin", f"1.2.{number}", slices=12, **who)
    tree = DicomTree(
        series=(
            SeriesChoice(name="flair", weighting="flair"),
            SeriesChoice(name="t1", description=("*mprage*",)),
        )
    )
    listing = tree.read(Survey.of(tmp_path))
    assert [case.patient for case in listing.cases] == ["P0", "P1", "P2"]
    names = [[Path(paths_of(source)[0]).name for source in case.image] for case in listing.cases]
    assert names == [["0f", "0t"], ["1f", "1t"], ["2f", "2t"]]
    assert read_image(listing.cases[0].image).array.shape == (2, 7, 5, 6)
    unclear = DicomTree(series=(SeriesChoice(name="t2", weighting="t2"),))
    listing = unclear.read(Survey.of(tmp_path))
    assert [case.patient for case in listing.cases] == ["P1"]
    assert (
        "2 studies have several series for 't2'; narrow it, or give `several: most_slices`" in listing.notes
    )
    most = DicomTree(series=(SeriesChoice(name="t2", weighting="t2", several="most_slices"),))
    listing = most.read(Survey.of(tmp_path))
    assert [read_image(case.image).shape[2] for case in listing.cases] == [12, 12, 12]


def test_a_study_that_lacks_one_of_the_channels_is_a_case_that_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        who = {"PatientID": f"P{number}"}
        mr(tmp_path / f"{number}f", "FLAIR", f"1.2.{number}", **who)
        if number != 1:
            mr(tmp_path / f"{number}t", "T1 mprage", f"1.2.{number}", **who)
    mr(tmp_path / "knee", "t2_tse", "1.2.9", PatientID="P9")
    choices = (
        SeriesChoice(name="t1", description=("*mprage*",)),
        SeriesChoice(name="flair", weighting="flair"),
    )
    found = index_folder(tmp_path, site_secret=SECRET, layout=DicomTree(series=choices))
    assert [(case.patient, [source != () for source in case.image]) for case in found.cases] == [
        ("P0", [True, True]),
        ("P1", [False, True]),
        ("P2", [True, True]),
    ]
    (told,) = unreadable(found).values()
    assert told.startswith("it has no file for channel 1 of 2")
    assert any(
        note.startswith("1 studies have no series for 't1' and one for another") for note in found.notes
    )
    assert "1 of 4 studies are left out" in found.notes


def test_series_of_one_description_are_told_apart_by_their_times(tmp_path: Path) -> None:
    """Spin echoes as a scanner calls them all alike: T1 (TE 12, TR 500), PD (12, 2500) and T2 (90, 4000)."""
    times = {"t1": (12, 500), "pd": (12, 2500), "t2": (90, 4000)}
    for name, (echo, repetition) in times.items():
        mr(tmp_path / name, "se_tra", "1.2.3", PatientID="P", EchoTime=echo, RepetitionTime=repetition)
    # No repetition time: it is of no choice that asks for one.
    mr(tmp_path / "x", "se_tra", "1.2.3", PatientID="P", EchoTime=12)

    def chosen(*choices: SeriesChoice) -> list[list[str]]:
        listing = DicomTree(series=choices).read(Survey.of(tmp_path))
        return [[Path(paths_of(source)[0]).name for source in case.image] for case in listing.cases]

    long_echo = SeriesChoice(name="t2", echo_ms=(60, 120))
    short = SeriesChoice(name="t1", echo_ms=(5, 30), repetition_ms=(300, 1000))
    assert chosen(long_echo, short) == [["t2", "t1"]]
    # Without a word in the description the times decide the weighting, too.
    assert chosen(*(SeriesChoice(name=name, weighting=name) for name in times)) == [["t1", "pd", "t2"]]
    assert chosen(SeriesChoice(name="pd", echo_ms=(12, 12), repetition_ms=(2500, 2500))) == [["pd"]]


def test_a_series_of_two_echoes_is_of_no_choice_of_one(tmp_path: Path) -> None:
    def two(ds: Dataset, k: int) -> None:
        ds.EchoTime = 12 if k < 3 else 90

    write_series(tmp_path / "both", Series(shape=(6, 5, 7), modality="MR", slope=1.0, intercept=0.0), two)
    listing = DicomTree(series=(SeriesChoice(name="t2", echo_ms=(60, 120)),)).read(Survey.of(tmp_path))
    assert listing.cases == ()
    both = DicomTree(series=(SeriesChoice(name="t2", echo_ms=(10, 120)),)).read(Survey.of(tmp_path))
    assert len(both.cases) == 1


def test_a_choice_that_says_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"echo_ms of 't2' is \[90, 60\]; give the lowest and the highest"):
        SeriesChoice(name="t2", echo_ms=(90, 60))
    with pytest.raises(DataError, match="'t1' says nothing of its series"):
        SeriesChoice(name="t1")
    with pytest.raises(DataError, match="expected one of t1, t1c"):
        SeriesChoice(name="t1", weighting="T1")


def test_radiographs_with_inverted_grey_are_no_wrapped_hounsfield_units(tmp_path: Path) -> None:
    # MONOCHROME1 of 16 bits stored: 65535 minus 200 to 700 lies where wrapped HU would lie.
    def radiograph(ds: Dataset, k: int) -> None:
        ds.Modality, ds.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
        ds.PatientID, ds.PhotometricInterpretation = f"P{k}", "MONOCHROME1"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.RescaleSlope, ds.RescaleIntercept

    grey = Series(shape=(5, 8, 7), signed=False, intercept=0, slope=1)
    write_series(tmp_path / "dx", grey, radiograph)
    case = index(tmp_path).cases[0]
    array = read_image(case.image).array[0, :, :, 0]
    k = int(case.patient[1:])
    np.testing.assert_array_equal(array, 65535 - grey.stored(k).T)
    codes = {finding.code for finding in check(tmp_path, site_secret=b"s" * 32).problems}
    assert "hu_unsigned" not in codes


def test_a_study_chooses_series_by_its_layout() -> None:
    text = b"""
    {"kind": "images", "channels": 2, "layout": {"kind": "dicom_tree", "series": [
        {"name": "flair", "weighting": "flair"},
        {"name": "t1", "modality": "MR", "description": ["*mprage*"], "several": "most_slices"}]}}
    """
    layout = msgspec.json.decode(text, type=Images).given_layout
    assert isinstance(layout, DicomTree)
    assert [choice.name for choice in layout.series] == ["flair", "t1"]
    assert layout.series[1].several == "most_slices"
