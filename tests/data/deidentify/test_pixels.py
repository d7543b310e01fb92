"""De-identified pixels: nothing is hidden in spare bits, after the end, or in comments."""

from __future__ import annotations

import numpy as np
import pydicom
from hard_series import Series, make_slice

from medfed.data.deidentify import deidentify
from medfed.data.deidentify.pixels import strip_comments

SECRET = b"0123456789abcdef" * 2


def test_spare_bits_and_what_follows_the_pixels_go(tmp_path) -> None:
    ds = make_slice(Series(signed=False), 0)
    words = np.frombuffer(ds.PixelData, "<u2") & 0x0FFF
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PixelData = (words | 0xA000).astype("<u2").tobytes() + b"tail"
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)
    deidentify(tmp_path / "in", tmp_path / "out", site_secret=SECRET)
    after = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    result = np.frombuffer(after.PixelData, "<u2")
    np.testing.assert_array_equal(result[: len(words)], words)
    assert len(result) - len(words) in (0, 1)


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
