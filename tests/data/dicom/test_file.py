"""Files without suffix, preamble or meta header, and transfer syntaxes that are not read."""

from __future__ import annotations

import hard_series as hs
import pydicom
from hard_series import Series, assert_in_place, write_series

from medfed.data.read import read


def test_files_without_ending_preamble_or_meta_header(tmp_path):
    series = Series()
    paths = write_series(tmp_path, series)
    for k, path in enumerate(paths):
        data = path.read_bytes()
        path.unlink()
        if k % 3 == 1:
            data = data[132:]
        if k % 3 == 2:
            ds = hs.make_slice(series, k)
            path = tmp_path / f"im {k}.v1.2"
            plain = pydicom.Dataset(ds)
            plain.save_as(path, implicit_vr=True, little_endian=True)
            continue
        (tmp_path / f"IM{k}").write_bytes(data)
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
