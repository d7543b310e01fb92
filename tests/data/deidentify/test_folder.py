"""Marks in every place of a DICOM file that can hold one: none of them comes out, and the image
still reads the same."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from hard_series import Series, make_slice, segmentation
from pydicom import Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.uid import UID

import medfed
from medfed.cli import main
from medfed.data.deidentify import deidentify
from medfed.data.deidentify.rules import NUMBERS
from medfed.errors import DataError

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
    assert all(re.fullmatch("roi [0-9a-f]{6}", e.value) for e in ds.iterall() if e.keyword in labels)
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
        actual = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
        return {(ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.PatientID) for ds in actual}

    assert told(clean) == told(tmp_path / "again")
    assert not {uid for row in told(clean) for uid in row} & {
        uid for row in told(tmp_path / "other") for uid in row
    }
    assert len({series for _, series, _ in told(clean)}) == 1
    for uid, series, _ in told(clean):
        for one in (uid, series):
            assert UID(one).is_valid
            assert one.startswith("2.25.")


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
    label_read = medfed.read_label(tmp_path / "out", after)
    np.testing.assert_array_equal(label_read.array, wanted.array)


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
    result = CliRunner().invoke(main, ["deidentify", str(marked), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("6 files of 1 series and 1 patients written")
    for mark_ in (WORD, str(NUMBER), DAY, ROOT):
        assert mark_ not in result.output


def test_links_and_folders_of_the_system_are_counted_and_not_copied(tmp_path) -> None:
    source = tmp_path / "in"
    for name in ("a", ".Trash-1000", "@eaDir", ".medfed"):
        (source / name).mkdir(parents=True)
        make_slice(Series(), 0).save_as(source / name / "1.dcm", enforce_file_format=True)
    (source / "b").symlink_to(source / "a")
    (source / "c.dcm").symlink_to(source / "a" / "1.dcm")
    done = deidentify(source, tmp_path / "out", site_secret=SECRET)
    assert done.files == 1
    assert dict(done.left_out) == {
        "a link, which is not followed": 2,
        "a hidden folder, or one of the system like a recycle bin": 2,
    }
