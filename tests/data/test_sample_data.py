"""The sample hospitals are what their script makes, and what a scanner would have written."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

SAMPLES = Path(__file__).parents[2] / "sample_data"
HOSPITALS = ("north", "east", "south", "west", "university")

# Type 1 attributes (there, with a value) and type 2 (there, may be empty) of the CT and MR Image IODs, PS3.3
# A.3 and A.4.
TYPE_1 = {
    "": "ImageType SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality "
    "FrameOfReferenceUID PixelSpacing "
    "ImageOrientationPatient ImagePositionPatient SamplesPerPixel PhotometricInterpretation Rows Columns "
    "BitsAllocated "
    "BitsStored HighBit PixelRepresentation PixelData",
    "CT": "RescaleIntercept RescaleSlope",
    "MR": "ScanningSequence SequenceVariant",
}
TYPE_2 = {
    "": "StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID PatientName PatientID "
    "PatientBirthDate PatientSex "
    "SeriesNumber PositionReferenceIndicator Manufacturer InstanceNumber SliceThickness PatientPosition",
    "CT": "KVP AcquisitionNumber",
    "MR": "ScanOptions MRAcquisitionType EchoTime EchoTrainLength RepetitionTime",
}


def rows(hospital: str) -> list[dict[str, str]]:
    with (SAMPLES / hospital / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def series(hospital: str) -> list[Path]:
    return sorted(path for path in (SAMPLES / hospital / "images").iterdir() if path.is_dir())


@pytest.mark.slow
def test_the_script_makes_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SAMPLES / "make.py", tmp_path], check=True)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    kept = {
        path.relative_to(SAMPLES)
        for folder in (*HOSPITALS, "tabular", "survival")
        for path in (SAMPLES / folder).rglob("*")
        if path.is_file()
    }
    assert made == kept
    for path in made:
        one, two = (tmp_path / path).read_bytes(), (SAMPLES / path).read_bytes()
        if path.suffix == ".gz":  # another zlib may pack the same contents otherwise
            one, two = gzip.decompress(one), gzip.decompress(two)
        assert one == two, path


def test_the_hospitals_are_small() -> None:
    size = sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file())
    assert size < 12_000_000


def test_a_survival_table_follows_nobody_longer_than_its_hospital_does() -> None:
    for hospital, longest in {"north": 84, "east": 60, "south": 48, "west": 72, "university": 72}.items():
        with (SAMPLES / "survival" / f"{hospital}.csv").open(encoding="utf-8", newline="") as file:
            result = list(csv.DictReader(file))
        times = [float(row["months"]) for row in result]
        assert 0 < min(times) <= max(times) <= longest
        assert 0.3 < sum(row["died"] == "1" for row in result) / len(result) < 0.7


@pytest.mark.parametrize("hospital", ["north", "east"])
def test_dicom_opens_without_a_warning(hospital: str) -> None:
    modality = {"north": "CT", "east": "MR"}[hospital]
    uids = []
    for folder in series(hospital):
        for path in sorted(folder.iterdir())[::9]:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ds = pydicom.dcmread(path)
                for element in ds.iterall():  # decode every value
                    _ = element.value
                assert ds.pixel_array.shape == (ds.Rows, ds.Columns)
                names = [x for part in ("", modality) for x in TYPE_1[part].split()]
                assert [name for name in names if ds.get(name) in (None, "")] == []
                assert [x for part in ("", modality) for x in TYPE_2[part].split() if x not in ds] == []
            assert ds.Modality == modality
            assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
            uids.append(ds.SOPInstanceUID)
    assert len(set(uids)) == len(uids)


def test_uids_are_valid_and_under_2_25() -> None:
    ds = pydicom.dcmread(next(series("north")[0].iterdir()))
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        uid = ds[name].value
        assert uid.is_valid
        assert uid.startswith("2.25.")
        assert int(uid[5:]) < 2**128


def test_segmentations_open_without_a_warning_and_reference_their_series() -> None:
    labels = sorted((SAMPLES / "north" / "labels").iterdir())
    assert len(labels) == 18
    for label in labels:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seg = pydicom.dcmread(label)
            _ = seg.pixel_array
        image = pydicom.dcmread(
            SAMPLES / "north" / "images" / label.stem / "IM0001.dcm", stop_before_pixels=True
        )
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
        assert (seg.FrameOfReferenceUID, seg.PatientID) == (image.FrameOfReferenceUID, image.PatientID)


def test_hounsfield_units_are_plausible() -> None:
    for path in series("north")[0].iterdir():
        ds = pydicom.dcmread(path)
        units = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert units.min() > -200
        assert units.max() < 400


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_labels_targets_and_patients_agree(hospital: str) -> None:
    listed = rows(hospital)
    assert len(listed) == 18
    assert len({row["patient"] for row in listed}) == 16
    for row in listed:
        path = SAMPLES / hospital / row["label"]
        marked = (
            pydicom.dcmread(path).pixel_array if path.suffix == ".dcm" else np.asarray(nib.load(path).dataobj)
        )
        assert bool(marked.any()) == (row["target"] == "1")
        same = [other for other in listed if other["patient"] == row["patient"]]
        assert len({(other["split"], other["sex"], other["age"]) for other in same}) == 1
    if hospital != "university":
        for split in ("val", "test"):
            targets = [row["target"] for row in listed if row["split"] == split]
            assert sorted(targets) == ["0", "1", "1"]


def test_the_hospitals_axes_differ() -> None:
    axes = {
        h: "".join(nib.aff2axcodes(nib.load(next((SAMPLES / h / "images").glob("*.nii.gz"))).affine))
        for h in ("south", "west", "university")
    }
    assert axes == {"south": "RAS", "west": "ASL", "university": "LAS"}
