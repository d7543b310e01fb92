"""Run a federation on marked patient data and search every byte that could leave for the marks.

The marks are in file and folder names, in every text of a DICOM header (including private elements), in
NIfTI's `descrip` and an extension, in cells of cases.csv, and in voxels. The tests search all messages, the
run folder (models, checkpoints, TensorBoard, logs, report), and all printed, logged or warned text. They look
for the marks verbatim, in UTF-16, base64 and hexadecimal, inside zip, gzip and zlib, and as plain hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import hard_series as hs
import nibabel as nib
import numpy as np
import pytest

from medfed.pipeline import train as run
from medfed.wire import encoding as wire

MARK = "Qz7CANARYx9"
# A sequence of values that no image, weight or statistic contains by chance.
VOXELS = np.array([1237, -871, 2011, -433, 1733, 619, -997, 1499], np.int16)
SIDE = 16

STUDY = """\
name: marked
seed: 1
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet, channels: [4, 8], residual_units: 0}
data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}
train: {rounds: 2, epochs: 1, batch: 2, optimiser: {kind: adamw, lr: 0.01}}
sampling: {minimum: 2}
evaluation: {draws: 20, smallest_group: 1}
sites: {north: north, south: south}
"""


def marked_words(number: int) -> dict[str, str]:
    """Return the marks of one patient, one for each place."""
    return {place: f"{MARK}{place}{number}" for place in ("Id", "Name", "File", "Folder", "Case", "Cell")}


def voxels(number: int) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(number).normal(0, 60, (SIDE,) * 3).round().astype(np.int16)
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[4 : 9 + number % 3, 4:9, 4:9] = 1
    image += 400 * label.astype(np.int16)
    image[:8, 0, 0] = image[0, :8, 1] = image[0, 0, :8] = VOXELS
    return image, label


def write_nifti(folder: Path, number: int) -> tuple[str, str]:
    words, names = marked_words(number), []
    for array, kind in zip(voxels(number), ("image", "label"), strict=True):
        saved = nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]))
        saved.header["descrip"] = words["Name"].encode()
        saved.header["intent_name"] = MARK.encode()
        saved.header.extensions.append(nib.nifti1.Nifti1Extension("comment", words["Id"].encode()))
        names.append(f"{words['File']}-{kind}.nii.gz")
        nib.save(saved, folder / names[-1])
    return names[0], names[1]


def write_dicom(folder: Path, number: int) -> tuple[str, str]:
    words, (image, label) = marked_words(number), voxels(number)
    series = hs.Series(shape=(SIDE,) * 3, spacing_mm=(2.0, 2.0), step_mm=2.0, slope=1.0, intercept=0.0)
    place = folder / words["Folder"]
    place.mkdir()
    for k in range(SIDE):
        ds = hs.make_slice(series, k)
        ds.PatientID, ds.PatientName = words["Id"], words["Name"]
        for keyword in ("InstitutionName", "ReferringPhysicianName", "StudyDescription", "AccessionNumber",
                        "StationName", "ProtocolName", "PatientComments", "OperatorsName"):  # fmt: skip
            setattr(ds, keyword, f"{MARK}{keyword}"[:16])
        ds.add_new(0x00091001, "LO", f"{MARK}private")
        hs.put_pixels(ds, image[:, :, k].T)
        hs.write(ds, place / f"{words['File']}{k}.dcm")
    saved = nib.Nifti1Image(label, hs.expected_affine(series))
    saved.to_filename(folder / f"{words['File']}-label.nii.gz")
    return place.name, f"{words['File']}-label.nii.gz"


def hospital(folder: Path, write) -> None:
    folder.mkdir(parents=True)
    rows = ["case,patient,image,label,split,sex,note"]
    for number in range(6):
        words = marked_words(number)
        image, label = write(folder, number)
        split = ("train", "train", "train", "train", "val", "test")[number]
        rows.append(
            ",".join([words["Case"], words["Id"], image, label, split, "FM"[number % 2], words["Cell"]])
        )
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")


def needles() -> Iterator[tuple[str, bytes]]:
    """Yield every byte string that must not be found."""
    yield "as it is", MARK.encode()
    yield "in small letters", MARK.lower().encode()
    yield "in UTF-16", MARK.encode("utf-16-le")
    yield "in UTF-16, big endian", MARK.encode("utf-16-be")
    yield "in hexadecimal", MARK.encode().hex().encode()
    for shift in range(3):  # base64 depends on a text's offset modulo three bytes
        coded = base64.b64encode(b"\0" * shift + MARK.encode())
        yield "in base64", coded[4 if shift else 0 : -4]
    for kind in ("<i2", ">i2", "<f4", "<f2", "<f8"):
        yield f"voxels as {kind}", VOXELS.astype(kind).tobytes()
    for number in range(6):
        for word in marked_words(number).values():
            for name in ("md5", "sha1", "sha256", "sha512", "blake2b"):
                digest = hashlib.new(name, word.encode()).digest()
                yield f"hashed by {name}", digest[:8]
                yield f"hashed by {name}, in hexadecimal", digest.hex()[:12].encode()


def layers(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """Yield data and its unpacked contents: zip members, gzip, zlib and base64."""
    yield data
    if depth > 3:
        return
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from layers(archive.read(name), depth + 1)
    for start, window in ((b"\x1f\x8b\x08", 31), (b"\x78\x9c", 15), (b"\x78\xda", 15)):
        for result in re.finditer(re.escape(start), data):
            try:
                yield from layers(
                    zlib.decompressobj(window).decompress(data[result.start() :], 1 << 24), depth + 1
                )
            except zlib.error:
                continue
    for result in re.finditer(rb"[A-Za-z0-9+/]{60,}={0,2}", data):
        text = result[0]
        yield from layers(base64.b64decode(text[: len(text) // 4 * 4], validate=False), depth + 1)


def leaks(name: str, data: bytes) -> list[str]:
    told = list(needles())
    return [f"{name}: {how}" for layer in layers(data) for how, needle in told if needle in layer]


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> dict[str, bytes]:
    """Run the federation and return all that was sent, written or printed, by name."""
    base = tmp_path_factory.mktemp("federation")
    data = base / f"{MARK}data"
    hospital(data / "north", write_dicom)
    hospital(data / "south", write_nifti)
    (data / "study.yaml").write_text(STUDY)
    sent: list[bytes] = []
    said = io.StringIO()
    patch = pytest.MonkeyPatch()

    def listened(encode):
        def listening(*args, **kwargs):
            pieces = list(encode(*args, **kwargs))
            sent.append(b"".join(pieces))
            return iter(pieces)

        return listening

    for verb in ("update_pieces", "global_pieces"):
        patch.setattr(wire, verb, listened(getattr(wire, verb)))
    patch.setattr(sys, "stdout", said)
    patch.setattr(sys, "stderr", said)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = run.train(data / "study.yaml", out=base / "run")
    patch.undo()
    assert len(sent) > 6
    result = {f"sent {number}": message for number, message in enumerate(sent)}
    result["said"] = said.getvalue().encode() + b"".join(str(one.message).encode() for one in caught)
    for path in done.path.rglob("*"):
        # The study file belongs to the simulation and names the folders that its owner wrote into it.
        if path.is_file() and path != done.study:
            result[str(path.relative_to(done.path))] = path.read_bytes()
    return result


def test_nothing_of_a_patient_is_in_anything_sent_written_or_said(marked):
    assert any(name.endswith(".ckpt") for name in marked)
    assert any("events.out" in name for name in marked)
    assert any(name.endswith(".html") for name in marked)
    result = [leak for name, data in marked.items() for leak in leaks(name, data)]
    assert not result, result[:20]


@pytest.mark.parametrize(
    "hide",
    [
        lambda text: text,
        lambda text: text.decode().encode("utf-16-le"),
        lambda text: b"xy" + base64.b64encode(b"a" + text + b"b" * 60),
        lambda text: gzip.compress(b"..." + text),
        lambda text: b"head" + zlib.compress(text) + b"tail",
        lambda text: hashlib.sha256(text).hexdigest()[:16].encode(),
        lambda text: hashlib.md5(text).digest(),
        lambda text: base64.b64encode(zlib.compress(text + bytes(range(256)))),
        lambda text: VOXELS.astype("<f4").tobytes(),
    ],
)
def test_the_search_finds_what_is_hidden(hide):
    word = marked_words(3)["Id"].encode()
    assert leaks("", b"before" + hide(word) + b" after")


def test_the_search_looks_into_checkpoints():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", f"hyper_parameters {MARK}")
    assert leaks("", packed.getvalue())
