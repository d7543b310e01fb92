"""GDCM and JPEG 2000 in subprocesses: in order, in parallel, and without loss when one of them dies."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
from dicom_encodings import JPEG_LOSSLESS, encode, jpeg_lossless
from hard_series import Series, assert_in_place, write_series
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless

from medfed.data.dicom import decoder_process, pixels
from medfed.data.read import read
from medfed.errors import ImageError


def encoded(value: int) -> bytes:
    """A frame of 4 x 6 pixels of one value."""
    ds = hs.make_slice(Series(shape=(1, 4, 6)), 0)
    hs.put_pixels(ds, np.full((4, 6), value))
    jpeg_lossless(ds)
    return next(generate_frames(ds.PixelData))


def decoded(packed: bytes) -> np.ndarray:
    return np.frombuffer(
        decoder_process.decode_in_subprocess(
            packed, decoder_process.CodedFrame(JPEG_LOSSLESS, "gdcm", 4, 6, 16, 16, False)
        ),
        "<u2",
    )


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_series_is_the_same_however_many_decode_it(tmp_path: Path, monkeypatch, at_once: int) -> None:
    monkeypatch.setattr(pixels, "max_processes", lambda: at_once)
    write_series(tmp_path, Series(shape=(11, 10, 9)), lambda ds, _: jpeg_lossless(ds))
    assert_in_place(read(tmp_path)[0], shape=(9, 10, 11))


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_a_series_in_jpeg_2000_too(tmp_path: Path, monkeypatch, at_once: int, signed: bool) -> None:
    monkeypatch.setattr(pixels, "max_processes", lambda: at_once)
    asked = _counted(monkeypatch)
    series = Series(shape=(17, 34, 40), signed=signed)
    write_series(tmp_path, series, lambda ds, _: encode(ds, JPEG2000Lossless))
    assert_in_place(read(tmp_path)[0], shape=(40, 34, 17))
    assert len(asked) == (0 if at_once == 1 else 17)


def test_a_few_frames_in_jpeg_2000_start_no_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pixels, "max_processes", lambda: 2)
    asked = _counted(monkeypatch)
    write_series(tmp_path, Series(shape=(3, 34, 40)), lambda ds, _: encode(ds, JPEG2000Lossless))
    assert_in_place(read(tmp_path)[0], shape=(40, 34, 3))
    assert asked == []


def test_a_damaged_slice_in_jpeg_2000_refuses_its_series(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pixels, "max_processes", lambda: 2)

    def damaged(ds, k: int) -> None:
        encode(ds, JPEG2000Lossless)
        if k == 11:
            ds.PixelData = ds.PixelData.replace(b"\xff\x52", b"\xff\x4c")  # no coding style

    write_series(tmp_path, Series(shape=(17, 34, 40)), damaged)
    with pytest.raises(ImageError, match="compressed pixels cannot be decoded; the file is damaged"):
        read(tmp_path)


def _counted(monkeypatch) -> list[str]:
    asked: list[str] = []
    original = pixels.decode_in_subprocess

    def counts(packed: bytes, coded: decoder_process.CodedFrame) -> bytearray:
        asked.append(coded.syntax)
        return original(packed, coded)

    monkeypatch.setattr(pixels, "decode_in_subprocess", counts)
    return asked


def test_threads_that_ask_at_once_each_get_their_own_frame() -> None:
    packed = {value: encoded(value) for value in range(100, 108)}
    wrong = []

    def ask(value: int) -> None:
        wrong.extend(value for _ in range(20) if not (decoded(packed[value]) == value).all())

    threads = [threading.Thread(target=ask, args=(value,)) for value in packed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_child_that_dies_is_replaced() -> None:
    packed = encoded(7)
    assert (decoded(packed) == 7).all()
    for child in decoder_process._pool._idle:
        child.kill()
        child.wait()
    assert (decoded(packed) == 7).all()


def test_a_child_that_dies_at_work_costs_its_frame_and_no_other(monkeypatch) -> None:
    packed = encoded(7)
    started = decoder_process._start_child

    def dies():
        child = started()
        child.kill()
        child.wait()
        return child

    decoder_process._pool.end()
    monkeypatch.setattr(decoder_process, "_start_child", dies)
    with pytest.raises(ImageError, match="make the decoder die or hang; the file is damaged"):
        decoded(packed)
    monkeypatch.undo()
    assert (decoded(packed) == 7).all()


def test_one_damaged_slice_refuses_the_series_and_the_next_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pixels, "max_processes", lambda: 3)

    def damaged(ds, k: int) -> None:
        jpeg_lossless(ds)
        if k == 4:
            ds.PixelData = ds.PixelData.replace(b"\xff\xc4", b"\xff\xc8")  # no Huffman table

    write_series(tmp_path / "one", Series(shape=(9, 10, 9)), damaged)
    write_series(tmp_path / "two", Series(shape=(9, 10, 9)), lambda ds, _: jpeg_lossless(ds))
    with pytest.raises(ImageError, match="compressed pixels"):
        read(tmp_path / "one")
    assert_in_place(read(tmp_path / "two")[0], shape=(9, 10, 9))


def test_a_forked_process_starts_a_child_of_its_own_and_leaves_its_parents_alone() -> None:
    packed = encoded(9)
    assert (decoded(packed) == 9).all()
    mine = {child.pid for child in decoder_process._pool._idle}
    forked = os.fork()
    if forked == 0:
        try:
            right = (decoded(packed) == 9).all()
            own = {child.pid for child in decoder_process._pool._idle}
            decoder_process._pool.end()
            os._exit(0 if right and own and not own & mine else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(forked, 0)[1] == 0
    assert {child.pid for child in decoder_process._pool._idle} == mine
    assert (decoded(packed) == 9).all()
