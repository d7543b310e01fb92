"""Which series of a tree are of one patient, and which are cases."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hard_series import Series, write_series
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medfed.data.case import paths_of
from medfed.data.case_reading import read_image
from medfed.data.index import Index
from medfed.data.preflight.preflight import check

from ..hospital_folder import index
from .dicom_folders import put


def studies_in_splits(found: Index) -> dict[str, set[str]]:
    """Return the splits of each study, read from the files."""
    splits = defaultdict(set)
    for case in found.cases:
        path = paths_of(case.image[0])[0]
        file = sorted(path.iterdir())[0] if path.is_dir() else path
        splits[str(pydicom.dcmread(file).StudyInstanceUID)].add(case.split)
    return splits


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
    indexed = index(tmp_path)
    assert indexed.patients == 12
    assert all(len(splits) == 1 for splits in studies_in_splits(indexed).values())
    assert len({case.split for case in indexed.cases}) > 1
    (note,) = [note for note in indexed.notes if "do not say whose they are" in note]
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
    indexed = index(tmp_path)
    assert indexed.patients == 2
    assert [
        len({case.split for case in indexed.cases if case.patient == who})
        for who in {case.patient for case in indexed.cases}
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
    indexed = index(tmp_path)
    assert sorted({case.patient for case in indexed.cases}) == ["P0", "P1", "P2"]
    assert not indexed.notes


def test_two_ids_in_one_study_are_one_patient(tmp_path: Path) -> None:
    for number, patient in enumerate(("P1", "P1-b", "P2", "P3")):
        study = "1.2.3" if number < 2 else generate_uid()
        put(tmp_path / patient, PatientID=patient, StudyInstanceUID=study, SeriesInstanceUID=generate_uid())
    indexed = index(tmp_path)
    assert indexed.patients == 3
    assert "1 patients have several PatientIDs in one study and count as one each" in indexed.notes


def test_radiographs_are_cases_where_there_are_no_volumes(tmp_path: Path) -> None:
    def radiograph(ds: Dataset, k: int) -> None:
        ds.Modality, ds.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.PatientID = f"P{k}"
        del ds.ImagePositionPatient, ds.ImageOrientationPatient

    write_series(tmp_path / "dx", Series(shape=(3, 5, 7), signed=False, intercept=0, slope=1), radiograph)
    indexed = index(tmp_path)
    assert sorted(case.patient for case in indexed.cases) == ["P0", "P1", "P2"]
    assert all(read_image(case.image).shape == (7, 5, 1) for case in indexed.cases)
    put(tmp_path / "ct")
    indexed = index(tmp_path)
    assert len(indexed.cases) == 1
    assert indexed.left_out == {"DICOM files (a radiograph beside volumes)": 3}


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
