"""The header parser against pydicom: every top-level element at its offset, in every encoding."""

from __future__ import annotations

import hard_series as hs
import pydicom
import pytest
from dicom_encodings import SYNTAXES, encode
from pydicom import uid
from pydicom.datadict import keyword_for_tag

from medfed.data.dicom.elements import Elements, TruncatedHeader
from medfed.data.dicom.file import open_dicom
from medfed.data.dicom.tags import PER_FRAME, PIXELS
from medfed.errors import ImageError


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_the_walker_and_pydicom_find_the_same_elements(tmp_path, syntax):
    ds = hs.make_slice(hs.Series(shape=(1, 40, 36)), 0)
    ds.add_new(0x00091001, "UN", b"private")
    ds.ReferencedImageSequence = hs.Items([pydicom.Dataset(), pydicom.Dataset()])
    ds.ReferencedImageSequence[1].ReferencedSOPInstanceUID = "1.2.3"
    encode(ds, syntax)
    path = hs.write(ds, tmp_path / "a.dcm")
    file = open_dicom(str(path))
    theirs = pydicom.dcmread(path)
    assert [int(element.tag) for element in theirs] == list(file.elements.tags())
    for element in theirs:
        if element.VR in ("DS", "IS"):
            values = element.value if element.VM > 1 else [element.value]
            assert file.elements.numbers(element.tag) == tuple(float(v) for v in values), element.keyword
        elif element.VR == "US":
            assert file.elements.integer(element.tag) == element.value
        elif element.VR in ("UI", "CS", "LO", "PN"):
            values = element.value if element.VM > 1 else [element.value]
            assert file.elements.texts(element.tag) == tuple(str(v).encode() for v in values)
    items = file.elements.items(0x00081140)
    assert [item.text(0x00081155) for item in items] == [b"", b"1.2.3"]


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian], ids=lambda s: s.name
)
def test_sequences_of_both_lengths(tmp_path, undefined, syntax):
    ds = hs.enhanced(hs.Series(modality="MR"), [{"k": k, "echo": 5} for k in range(6)])
    ds.file_meta.TransferSyntaxUID = syntax

    def mark(dataset):
        for element in dataset:
            if element.VR == "SQ":
                element.is_undefined_length = undefined
                for item in element.value:
                    item.is_undefined_length_sequence_item = undefined
                    mark(item)

    mark(ds)
    file = open_dicom(str(hs.write(ds, tmp_path / "a.dcm")))
    assert PIXELS in file.elements
    frames = file.elements.items(PER_FRAME)
    assert len(frames) == 6
    for frame, theirs in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        place = frame.first(0x00209113)
        assert place.numbers(0x00200032) == tuple(
            map(float, theirs.PlanePositionSequence[0].ImagePositionPatient)
        )


def walk(data):
    return Elements(data, 0, len(data), little=True, explicit=True)


def test_damage_is_named():
    one = b"\x08\x00\x60\x00CS\x02\x00CT"
    assert walk(one).text(0x00080060) == b"CT"
    with pytest.raises(ImageError, match=r"Modality \(0008,0060\) occurs twice"):
        walk(one + one)
    with pytest.raises(TruncatedHeader):
        walk(one[:-1])
    with pytest.raises(TruncatedHeader):
        walk(one + b"\x08")
    with pytest.raises(ImageError, match="DICOM value representation is missing"):
        walk(one + b"\x10\x00\x10\x00??\x02\x00ab")
    with pytest.raises(ImageError, match=r"no whole|not a whole"):
        walk(b"\x28\x00\x08\x00IS\x04\x001.5 ").count(0x00280008)


def test_no_message_quotes_a_value():
    secret = b"\x28\x00\x53\x10DS\x06\x00SECRET"
    with pytest.raises(ImageError, match="RescaleSlope") as refusal:
        walk(secret).number(0x00281053)
    assert "SECRET" not in str(refusal.value)
    assert keyword_for_tag(0x00281053) in str(refusal.value)
