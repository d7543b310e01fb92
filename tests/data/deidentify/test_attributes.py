"""De-identified attributes: dates, descriptions, identifiers and private b-values."""

from __future__ import annotations

from datetime import datetime, timedelta

import hard_series
import pydicom
import pytest
from hard_series import Series, make_slice
from pydicom import Dataset

import medfed
from medfed.data.deidentify import Options, deidentify
from medfed.data.deidentify.attributes import clean_words, shift_date
from medfed.data.deidentify.secret import SiteSecret

SECRET = b"0123456789abcdef" * 2
WORD = "Zweigmark"


def test_dates_move_together_and_keep_their_distance() -> None:
    shift = SiteSecret(SECRET).shift("one")
    assert timedelta(days=-3652) < shift < timedelta(0)
    early, late = shift_date("20200101", "101500.5", shift), shift_date("20200311", "091500", shift)
    first, second = (datetime.strptime("".join(one), "%Y%m%d%H%M%S.%f") for one in (early, late))
    # From the first of January to the eleventh of March in a leap year: 70 days, less an hour and
    # half a second.
    assert second - first == timedelta(days=70, hours=-1, seconds=-0.5)
    assert shift_date("20200131", "", timedelta(days=-31)) == ("20191231", "")
    assert shift_date(WORD, "101500", shift) is None
    assert shift_date("20201399", "", shift) is None
    assert SiteSecret(SECRET).shift("two") != shift


def test_dates_and_descriptions_can_be_removed_and_devices_kept(tmp_path) -> None:
    ds = make_slice(Series(), 0)
    ds.StudyDate, ds.StudyTime, ds.SeriesDescription = "20200102", "101112", f"T2 ax FLAIR Dr. {WORD} 2020"
    ds.DeviceSerialNumber, ds.Manufacturer = "12345", "SIEMENS"
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)

    def out(name: str, options: Options) -> Dataset:
        deidentify(tmp_path / "in", tmp_path / name, site_secret=SECRET, options=options)
        return pydicom.dcmread(next((tmp_path / name).rglob("*.dcm")))

    kept = out("kept", Options(device="keep"))
    assert kept.SeriesDescription == "t2 ax flair"
    assert kept.StudyDate not in ("", "20200102")
    assert kept.DeviceSerialNumber == "12345"
    gone = out("gone", Options(dates="remove", descriptors="remove"))
    assert (gone.StudyDate, gone.StudyTime) == ("", "")
    assert "SeriesDescription" not in gone
    assert "DeviceSerialNumber" not in gone
    assert gone.Manufacturer == "Siemens"
    assert [code.CodeValue for code in gone.DeidentificationMethodCodeSequence] == ["113100"]


def test_slices_without_a_patient_stay_one_series_though_each_names_another_study(tmp_path) -> None:
    series = Series()
    (tmp_path / "in").mkdir()
    for k in range(series.shape[0]):
        ds = make_slice(series, k)
        ds.PatientID = ds.PatientName = ""
        ds.StudyInstanceUID = f"1.2.3.{k}"
        ds.save_as(tmp_path / "in" / f"{k}.dcm", enforce_file_format=True)
    assert deidentify(tmp_path / "in", tmp_path / "out", site_secret=SECRET).patients == 1
    (volume,) = medfed.read(tmp_path / "out")
    assert volume.shape[2] == series.shape[0]


def test_words_of_a_vocabulary_stay() -> None:
    assert clean_words("T2_FLAIR sag, Müller Anna 1937-05-12 5mm") == "t2 flair sag 05 12"
    assert clean_words(WORD) == ""


def _b_value_of(maker: str, ds, b: int) -> None:
    if maker == "Philips":
        ds.add_new(0x20010010, "LO", "Philips Imaging DD 001")
        ds.add_new(0x20011003, "FL", float(b))
    elif maker == "GE":
        ds.add_new(0x00430010, "LO", "GEMS_PARM_01")
        ds.add_new(0x00431039, "IS", [1_000_000_000 + b, 8, 0, 0])
    else:
        ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        ds.add_new(0x0019100C, "IS", b)


@pytest.mark.parametrize("maker", ["Philips", "GE", "Siemens"])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_a_makers_private_b_value_becomes_the_public_one(tmp_path, maker, syntax):
    for b in (0, 800):
        ds = hard_series.make_slice(hard_series.Series(modality="MR"), 0)
        ds.file_meta.TransferSyntaxUID = syntax
        _b_value_of(maker, ds, b)
        (tmp_path / "in").mkdir(exist_ok=True)
        hard_series.write(ds, tmp_path / "in" / f"{b}.dcm")
    deidentify(tmp_path / "in", tmp_path / "out", site_secret=SECRET, options=Options())
    result = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert sorted(ds.DiffusionBValue for ds in result) == [0, 800]
    assert not any(element.tag.is_private for ds in result for element in ds)


def test_kernels_still_differ_and_say_nothing(tmp_path):
    series = hard_series.Series()
    other = hard_series.Series(uids=series.uids, origin_mm=(-10.0, -20.0, 31.25))
    for made, kernel in ((series, "CANARY soft"), (other, "CANARY sharp")):
        hard_series.write_series(
            tmp_path / "in", made, lambda ds, k, kernel=kernel: setattr(ds, "ConvolutionKernel", kernel)
        )
    deidentify(tmp_path / "in", tmp_path / "out", site_secret=SECRET, options=Options())
    assert len(medfed.read(tmp_path / "out")) == len(medfed.read(tmp_path / "in")) == 2
    assert not any(b"CANARY" in path.read_bytes() for path in (tmp_path / "out").rglob("*.dcm"))
