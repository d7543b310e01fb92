"""Marks in every place of a DICOM file that can hold one: none of them comes out, and the image
still reads the same.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom import Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.uid import UID

import medfed
from medfed.cli import main
from medfed.data.deidentify import Options, deidentify
from medfed.data.deidentify.attributes import clean_words, shift_date
from medfed.data.deidentify.pixels import strip_comments
from medfed.data.deidentify.rules import NUMBERS, SEQUENCES
from medfed.data.deidentify.secret import SiteSecret
from medfed.errors import DataError

sys.path.insert(0, str(Path(__file__).parent / "readers"))
import hard_series
from hard_series import Series, make_slice, segmentation

SECRET = b"0123456789abcdef" * 2
WORD, NUMBER, DAY, ROOT = "Zweigmark", 31415926, "19370512", "1.2.999.27182818"
# What makes the marked file an image: these keep their values.
NEEDED = {
    "Modality",
    "SOPClassUID",
    "PhotometricInterpretation",
    "SpecificCharacterSet",
    "ImageType",
    "RescaleType",
}
TEXTS = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE"}


def mark(vr: str, keyword: str) -> object:
    """Return a mark that fits a value representation, or None if it cannot hold one."""
    if vr in TEXTS:
        return WORD.upper() if vr == "CS" else WORD
    return {
        "UI": f"{ROOT}.{len(keyword)}",
        "DA": DAY,
        "DT": f"{DAY}101112",
        "AS": "097Y",
        "UR": f"http://{WORD}.example",
        "IS": str(NUMBER),
        "DS": str(NUMBER),
        "UL": NUMBER,
        "SL": NUMBER,
        "FD": float(NUMBER),
        "OB": WORD.encode() + b"\0",
        "OW": WORD.encode() + b"\0",
        "UN": WORD.encode() + b"\0",
    }.get(vr)


def all_marks() -> Dataset:
    """Return a mark in every attribute of the standard that an image does not need; one item per sequence."""
    marks = Dataset()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if not keyword or keyword in NEEDED or tag >> 16 in (0, 2, 4, 0x7FE0) or tag in NUMBERS:
            continue
        if vr == "SQ" and keyword not in ("ModalityLUTSequence", "PerFrameFunctionalGroupsSequence"):
            marks.add_new(tag, "SQ", [nested()])
        elif mark(vr, keyword) is not None:
            marks.add_new(tag, vr, mark(vr, keyword))
    block = marks.private_block(0x0029, f"{WORD} CREATOR", create=True)
    block.add_new(0x10, "LO", WORD)
    block.add_new(0x11, "OB", WORD.encode() + b"\0")
    return marks


def fill(ds: Dataset, marks: Dataset) -> None:
    """Add the marks, but keep what makes the dataset one image of one series."""
    for element in marks:
        if element.VR == "UI" and element.tag in ds:
            digits = int(hashlib.sha256(str(ds[element.tag].value).encode()).hexdigest()[:12], 16)
            ds.add_new(element.tag, "UI", f"{ROOT}.{digits}")
        else:
            ds[element.tag] = element


def nested() -> Dataset:
    """Return an item with a mark in each form, and another item below."""
    item = Dataset()
    for keyword in (
        *(
            "PatientName",
            "PatientID",
            "ReferringPhysicianName",
            "InstitutionName",
            "StudyDate",
            "AcquisitionDateTime",
        ),
        *(
            "CodeValue",
            "CodeMeaning",
            "SegmentLabel",
            "ROIName",
            "SeriesDescription",
            "TextValue",
            "ReferencedSOPInstanceUID",
        ),
        *(
            "PatientAge",
            "StudyID",
            "DeviceSerialNumber",
            "EncapsulatedDocument",
            "Modality",
            "BodyPartExamined",
        ),
    ):
        tag = pydicom.datadict.tag_for_keyword(keyword)
        vr = pydicom.datadict.dictionary_VR(tag)
        item.add_new(tag, vr, mark(vr, keyword))
    inner = Dataset()
    inner.PatientName, inner.PatientComments = WORD, WORD
    item.ReferencedInstanceSequence = [inner]
    item.private_block(0x0029, WORD, create=True).add_new(0x10, "LO", WORD)
    return item


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """A folder with a CT series full of marks, under marked names, beside other files."""
    folder = tmp_path_factory.mktemp("in") / f"{WORD} {NUMBER}"
    series = Series()
    (folder / WORD).mkdir(parents=True)
    marks = all_marks()
    for k in range(series.shape[0]):
        ds = make_slice(series, k)
        fill(ds, marks)
        ds.BurnedInAnnotation = "NO"
        # A marked preamble and meta header, an overlay, and bytes behind the end.
        ds.preamble = WORD.encode().ljust(128, b"\0")
        ds.file_meta.PrivateInformationCreatorUID = f"{ROOT}.7"
        ds.file_meta.PrivateInformation = WORD.encode() + b"\0"
        ds.file_meta.SourceApplicationEntityTitle = WORD
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.add_new(0x60003000, "OW", WORD.encode() + b"\0")
        ds.add_new(0x60000022, "LO", WORD)
        ds.DataSetTrailingPadding = WORD.encode() + b"\0"
        ds.save_as(folder / WORD / f"{WORD}{k}.dcm", enforce_file_format=False)
    (folder / f"{WORD}.csv").write_text(f"{WORD},{NUMBER}\n")
    (folder / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + WORD.encode() * 9)
    return folder


@pytest.fixture(scope="module")
def clean(marked: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "clean"
    deidentify(marked, out, site_secret=SECRET)
    return out


def forms(text: str) -> Iterator[tuple[str, bytes]]:
    """Return the forms of a hidden text: plain, UTF-16, base64 at any offset, and hashed without a key."""
    for word in {text, text.upper(), text.lower()}:
        plain = word.encode()
        yield "plain", plain
        yield "utf-16", word.encode("utf-16-le")
        yield "utf-16 big", word.encode("utf-16-be")
        for skip in range(3):
            whole = base64.b64encode(b"\0" * skip + plain)
            yield "base64", whole[4 if skip else 0 : len(whole) // 4 * 4 - 4]
        for name in ("md5", "sha1", "sha256"):
            digest = hashlib.new(name, plain).digest()
            yield name, digest
            yield f"{name} hex", digest.hex().encode()


def every_byte(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        yield "a name", str(path.relative_to(folder)).encode()
        if path.is_file():
            yield "a file", path.read_bytes()


def test_the_input_is_full_of_marks(marked: Path) -> None:
    data = next((marked / WORD).iterdir()).read_bytes()
    assert data.count(WORD.encode()) > 1000
    assert data.count(DAY.encode()) > 100
    assert data.count(str(NUMBER).encode()) > 100


def test_no_mark_comes_out_in_any_form(clean: Path) -> None:
    assert len(list(clean.rglob("*.dcm"))) == 6
    numbers = [("number", NUMBER.to_bytes(4, "little")), ("float", np.float64(NUMBER).tobytes())]
    for where, data in every_byte(clean):
        for mark_ in (WORD, str(NUMBER), DAY, ROOT):
            for form, wanted in (*forms(mark_), *numbers):
                assert wanted not in data, f"{mark_} as {form} in {where}"


def test_the_image_reads_as_before(marked: Path, clean: Path) -> None:
    (before,), (after,) = (medfed.read(folder) for folder in (marked / WORD, clean))
    np.testing.assert_array_equal(before.array, after.array)
    np.testing.assert_array_equal(before.affine_ras, after.affine_ras)
    assert after.info.modality == "CT"


def test_only_attributes_of_the_tables_are_there(clean: Path) -> None:
    ds = pydicom.dcmread(next(clean.rglob("*.dcm")))
    assert not [e for e in ds.iterall() if e.tag.is_private]
    assert ds.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in ds.DeidentificationMethodCodeSequence] == [
        "113100",
        "113105",
        "113107",
    ]
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"
    assert ds.PatientName == ds.PatientID
    assert re.fullmatch(r"P[0-9A-F]{12}", ds.PatientID)
    assert ds.PatientBirthDate == ds.PatientSex == ds.AccessionNumber == ""


def test_the_profile_s_own_list_is_obeyed(clean: Path) -> None:
    """Compare with dicom-anonymizer's transcription of PS3.15 table E.1-1, if it is installed."""
    module = "dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c"
    table = pytest.importorskip(
        module, reason="dicom-anonymizer, which holds the standard's table, isn't installed"
    )
    ds = pydicom.dcmread(next(clean.rglob("*.dcm")))
    labels = {"ROIName", "ROIObservationLabel", "SegmentLabel"}  # a dummy in their place
    assert {e.value for e in ds.iterall() if e.keyword in labels} <= {"roi"}
    ours = labels | {
        "PatientName",
        "PatientID",
        "DeidentificationMethodCodeSequence",
        "DeidentificationMethod",
    }
    removed = {
        tuple(tag)[:2] for name in ("X_TAGS", "Z_TAGS", "D_TAGS", "X_Z_TAGS") for tag in getattr(table, name)
    }
    for element in ds.iterall():
        listed = (element.tag.group, element.tag.element) in removed
        if listed and element.keyword not in ours and element.VR not in ("DA", "TM", "DT"):  # those moved
            assert element.value in ("", None) or element.VR == "SQ" or element.value == [], element.keyword


def test_uids_are_made_by_the_secret_and_agree_within_and_between_runs(
    marked: Path, clean: Path, tmp_path
) -> None:
    deidentify(marked, tmp_path / "again", site_secret=SECRET)
    deidentify(marked, tmp_path / "other", site_secret=b"another secret, 16 bytes or more")

    def told(folder: Path) -> set[tuple[str, str, str]]:
        found = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
        return {(ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.PatientID) for ds in found}

    assert told(clean) == told(tmp_path / "again")
    assert not {uid for row in told(clean) for uid in row} & {
        uid for row in told(tmp_path / "other") for uid in row
    }
    assert len({series for _, series, _ in told(clean)}) == 1
    for uid, series, _ in told(clean):
        for one in (uid, series):
            assert UID(one).is_valid
            assert one.startswith("2.25.")


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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "text in the picture"),
        ({"Modality": "US"}, "often has text in the picture"),
        ({"Modality": "SR"}, "report, document"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"SamplesPerPixel": 3}, "colour picture"),
    ],
)
def test_what_cannot_be_made_safe_is_left_out_with_its_reason(tmp_path, change: dict, reason: str) -> None:
    ds = make_slice(Series(), 0)
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)
    done = deidentify(tmp_path / "in", tmp_path / "out", site_secret=SECRET)
    assert done.files == 0
    assert reason in done.left_out[0][0]
    assert not list((tmp_path / "out").rglob("*.dcm"))


def test_segmentations_and_structure_sets_still_fit_their_image(tmp_path) -> None:
    series = Series()
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(series.shape[0]):
        make_slice(series, k).save_as(folder / f"{k}.dcm", enforce_file_format=True)
    mask = np.zeros(series.shape[1:], bool)
    mask[1:3, 2:5] = True
    label = tmp_path / "label.dcm"
    made = segmentation(series, [(1, 2, mask), (1, 3, mask)])
    made.save_as(label, enforce_file_format=True)
    (before,) = medfed.read(folder)
    wanted = medfed.read_label(label, before)
    label.rename(folder / "label.dcm")
    deidentify(folder, tmp_path / "out", site_secret=SECRET)
    (after,) = medfed.read(tmp_path / "out")
    found = medfed.read_label(tmp_path / "out", after)
    np.testing.assert_array_equal(found.array, wanted.array)


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


def test_spare_bits_and_what_follows_the_pixels_go(tmp_path) -> None:
    ds = make_slice(Series(signed=False), 0)
    words = np.frombuffer(ds.PixelData, "<u2") & 0x0FFF
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PixelData = (words | 0xA000).astype("<u2").tobytes() + b"tail"
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)
    deidentify(tmp_path / "in", tmp_path / "out", site_secret=SECRET)
    after = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    found = np.frombuffer(after.PixelData, "<u2")
    np.testing.assert_array_equal(found[: len(words)], words)
    assert len(found) - len(words) in (0, 1)


def test_comments_of_a_codestream_go_and_the_rest_stays() -> None:
    comment = b"\xff\xfe\x00\x06mark"
    app = b"\xff\xe1\x00\x06mark"
    table = b"\xff\xdb\x00\x04\x01\x02"
    scan = b"\xff\xda\x00\x04\x01\x02pixels\xff\xd9"
    assert strip_comments(b"\xff\xd8" + comment + table + app + scan + b"mark") == b"\xff\xd8" + table + scan
    size = b"\xff\x51\x00\x04\x01\x02"
    tile = b"\xff\x90\x00\x04\x01\x02pixels\xff\xd9"
    assert strip_comments(b"\xff\x4f" + size + b"\xff\x64\x00\x06mark" + tile) == b"\xff\x4f" + size + tile
    assert strip_comments(b"anything else") == b"anything else"


def test_words_of_a_vocabulary_stay() -> None:
    assert clean_words("T2_FLAIR sag, Müller Anna 1937-05-12 5mm") == "t2 flair sag 05 12"
    assert clean_words(WORD) == ""


@pytest.mark.parametrize(
    ("target", "secret", "message"),
    [
        ("in/inside", SECRET, "lies in the folder to read"),
        ("out", b"short", "has 5 bytes"),
        ("full", SECRET, "not empty"),
    ],
)
def test_places_that_would_go_wrong_are_refused(tmp_path, target: str, secret: bytes, message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(DataError, match=message):
        deidentify(tmp_path / "in", tmp_path / target, site_secret=secret)


def test_the_command_tells_counts_and_nothing_else(marked: Path, tmp_path) -> None:
    told = CliRunner().invoke(main, ["deidentify", str(marked), str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    assert told.output.startswith("6 files of 1 series and 1 patients written")
    for mark_ in (WORD, str(NUMBER), DAY, ROOT):
        assert mark_ not in told.output


def test_no_sequence_of_the_tables_is_removed_by_the_profile() -> None:
    table = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    listed = {(tag[0] << 16) | tag[1] for tag in table.X_TAGS if len(tag) == 2}
    assert not listed & SEQUENCES


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
    found = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert sorted(ds.DiffusionBValue for ds in found) == [0, 800]
    assert not any(element.tag.is_private for ds in found for element in ds)


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
