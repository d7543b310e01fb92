"""Damaged and malicious files: a volume or our own error, within time and memory, without output."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import hard_series as hs
import pytest
from fuzz import fuzz
from hard_series import Series, assert_in_place, write, write_series
from pydicom import uid
from pydicom.encaps import encapsulate

from medfed.data.read import read, read_label
from medfed.errors import ImageError, MedfedError


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_slice_is_refused_even_at_the_end(tmp_path, keep):
    paths = write_series(tmp_path, Series(shape=(6, 20, 20)))
    data = paths[5].read_bytes()
    paths[5].write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ImageError, match=r"truncated|without pixel data") as refusal:
        read(tmp_path)
    assert "CANARY" not in str(refusal.value)


def test_an_empty_file_is_refused_unless_its_name_says_that_it_is_no_image(tmp_path):
    write_series(tmp_path, Series())
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden").touch()
    assert len(read(tmp_path)[0].info.skipped) == 2
    (tmp_path / "IM7").touch()
    with pytest.raises(ImageError, match=r"one of the files is empty \(0 bytes\)"):
        read(tmp_path)
    with pytest.raises(ImageError, match="the file is empty"):
        read(tmp_path / "IM7")


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("IM7", bytes(100), "holds zeros only"),
        ("IM7", bytes(100_000), "holds zeros only"),
        ("a.nii.gz", b"\x1f\x8b\x08\0damaged", r"named as NIfTI, but is a \.gz file"),
        ("a.mha", b"hello", "named as MetaImage, but is of no format"),
        ("a.seg.nrrd", b"hello", "named as NRRD, but is of no format"),
        ("a.nii", b"hello", "named as NIfTI, but is of no format"),
    ],
)
def test_what_once_was_an_image_is_not_taken_for_junk(tmp_path, name, content, match):
    write_series(tmp_path, Series())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=match):
        read(tmp_path)


def test_what_is_neither_file_nor_folder_does_not_hang(tmp_path):
    write_series(tmp_path, Series())
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    os.symlink(tmp_path, tmp_path / "loop")
    os.symlink(tmp_path / "pipe", tmp_path / "linked pipe")
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    with pytest.raises(ImageError, match="neither a file nor a folder"):
        read(tmp_path / "pipe")
    with pytest.raises(ImageError, match="no such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="neither a file nor a folder"):
        read("/dev/zero")


def test_an_empty_folder_and_a_folder_of_something_else(tmp_path):
    with pytest.raises(ImageError, match="no volume, no file at all"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ImageError, match="only 1 other files"):
        read(tmp_path)


def test_a_damaged_magic_word_is_not_taken_for_junk(tmp_path):
    paths = write_series(tmp_path, Series())
    data = bytearray(paths[5].read_bytes())
    data[128] ^= 1
    paths[5].write_bytes(data)
    with pytest.raises(ImageError, match="lacks the word DICM"):
        read(tmp_path)


def jpeg_2000_bomb(rows, columns):
    """Return a codestream that announces a huge empty image."""
    size = struct.pack(">HIIIIIIIIH", 0, columns, rows, 0, 0, columns, rows, 0, 0, 1) + bytes([15, 1, 1])
    main = b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size
    main += b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x05\x04\x04\x00\x01" + b"\xff\x5c\x00\x13" + b"\x40" * 17
    return main + b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x0e\x00\x01\xff\x93\xff\xd9"


def bomb(kind, path):
    ds = hs.make_slice(Series(), 0)
    if kind == "jpeg 2000":
        ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
        ds.Rows = ds.Columns = 50_000
        ds.PixelData = encapsulate([jpeg_2000_bomb(50_000, 50_000)])
    elif kind == "rle":
        ds.file_meta.TransferSyntaxUID = uid.RLELossless
        ds.Rows = ds.Columns = 40_000
        ds.PixelData = encapsulate([struct.pack("<16I", 2, 64, 10_000, *[0] * 13) + b"\x81\x00" * 9_000])
    elif kind == "empty frames":  # 62 times larger, all of it as announced
        ds = hs.enhanced(Series(modality="MR"), [{"k": k} for k in range(520)])
        ds.Rows = ds.Columns = 512
        run = b"\x81\x00" * 2048
        frame = struct.pack("<16I", 2, 64, 64 + len(run), *[0] * 13) + run + run
        ds.file_meta.TransferSyntaxUID = uid.RLELossless
        ds.PixelData = encapsulate([frame] * 520)
        ds["PixelData"].is_undefined_length = True
    elif kind == "frames":
        ds = hs.enhanced(Series(modality="MR"), [{"k": k} for k in range(3)])
        ds.NumberOfFrames = 2_000_000_000
    elif kind == "deflate":
        stream = zlib.compressobj(9, wbits=-15)
        data = write(ds, path).read_bytes()
        start = (
            data.index(b"\x08\x00\x05\x00")
            if b"\x08\x00\x05\x00" in data[:600]
            else data.index(b"\x08\x00\x08\x00")
        )
        packed = stream.compress(data[start:-82]) + stream.compress(
            b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", 3 << 30)
        )
        for _ in range(3 << 6):
            packed += stream.compress(bytes(1 << 24))
        meta = data[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1\0")
        at = meta.index(b"\x02\x00\x10\x00UI")
        syntax = b"\x02\x00\x10\x00UI" + struct.pack("<H", 22) + b"1.2.840.10008.1.2.1.99"
        path.write_bytes(meta[:at] + syntax + meta[at + 8 + 20 :] + packed + stream.flush())
        return
    elif kind == "items":
        data = write(ds, path).read_bytes()
        start, item = data.index(b"\x08\x00\x08\x00"), b"\xfe\xff\x00\xe0\0\0\0\0"
        count = 4_000_000
        lut = b"\x28\x00\x00\x30SQ\0\0" + struct.pack("<I", len(item) * count) + item * count
        end = data.index(b"\xe0\x7f\x10\x00")
        path.write_bytes(data[:end] + lut + data[end:])
        return
    elif kind == "deep":
        depth = 40_000
        nested = (b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
        data = write(ds, path).read_bytes()
        start = data.index(b"\x08\x00\x08\x00")
        path.write_bytes(data[:start] + nested + data[start:])
        return
    if kind in ("jpeg 2000", "rle"):
        ds["PixelData"].is_undefined_length = True
    write(ds, path)


@pytest.mark.parametrize("kind", ["jpeg 2000", "rle", "empty frames", "frames", "items", "deflate", "deep"])
def test_a_bomb_is_refused_in_little_memory_and_time(tmp_path, kind):
    path = tmp_path / "a.dcm"
    bomb(kind, path)
    script = (
        "import sys, time; from medfed.data.read import read; from medfed.errors import"
        " ImageError\n"
        "began = time.monotonic()\n"
        "try: read(sys.argv[1])\n"
        "except ImageError as refusal: print(refusal)\n"
        "else: sys.exit('it was read')\n"
        "assert time.monotonic() - began < 20\n"
        # Not getrusage's: it begins with the peak of the process that started this one.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "assert int(peak.split()[1]) < 1_500_000\n"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_few_hundred_mutated_files(tmp_path):
    tally, wrong = fuzz(400, 7, tmp_path)
    assert wrong == []
    assert sum(tally.values()) == 400
    assert tally["volume"] > 40


@pytest.mark.slow
def test_ten_thousand_mutated_files():
    # In a subprocess: the peak memory of a process never falls, and this one's may be high from other tests.
    script = Path(__file__).parents[1] / "fuzz.py"
    done = subprocess.run(
        [sys.executable, str(script), "--count", "10000", "--seed", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_cause_not_foreseen_becomes_our_error_without_its_words(tmp_path, monkeypatch):
    paths = write_series(tmp_path, Series())

    def fail(*_):
        raise ValueError("CANARY")

    monkeypatch.setattr("medfed.data.dicom.volumes.parse_frames", fail)
    with pytest.raises(ImageError, match="cannot be read \\(ValueError\\)") as refusal:
        read(paths[0])
    assert refusal.value.__context__ is None
    assert "CANARY" not in str(refusal.value)


def test_reading_a_label_refuses_with_our_errors_too(tmp_path):
    write_series(tmp_path / "ct", Series())
    (volume,) = read(tmp_path / "ct")
    with pytest.raises(MedfedError, match="no such file"):
        read_label(tmp_path / "nowhere.nii", volume)
    (tmp_path / "a.nii").write_bytes(b"hello")
    with pytest.raises(MedfedError, match="of no format that is read"):
        read_label(tmp_path / "a.nii", volume)


def test_archives_are_named_and_not_looked_into(tmp_path):
    write_series(tmp_path / "a", Series())
    (tmp_path / "b").mkdir()
    first = next((tmp_path / "a").iterdir())
    with zipfile.ZipFile(tmp_path / "b" / "a.zip", "w") as archive:
        archive.write(first, "a.dcm")
    with pytest.raises(ImageError, match="a zip archive, which is not opened; unpack it"):
        read(tmp_path / "b" / "a.zip")
    (tmp_path / "b" / "a.dcm.gz").write_bytes(gzip.compress(first.read_bytes()))
    with pytest.raises(ImageError, match=r"only 2 other files, the first a packed archive .* unpack it"):
        read(tmp_path / "b")


def test_links_to_folders_are_followed_once(tmp_path):
    series = Series()
    write_series(tmp_path / "in", series, order=(0, 1, 2))
    write_series(tmp_path / "elsewhere", series, order=(3, 4, 5))
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "more")
    os.symlink(tmp_path / "in", tmp_path / "in" / "loop")
    (volume,) = read(tmp_path / "in")
    assert_in_place(volume, shape=(7, 5, 6))
