"""MONAI gets the same volume, without a path or header value."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, write_series
from monai.transforms import LoadImage

from medfed.data.monai_reader import MedfedReader
from medfed.data.read import read
from medfed.errors import ImageError


def test_load_image_gives_the_volume(tmp_path):
    write_series(tmp_path, Series(shift_mm=(0, 0.4, 0)), order=[3, 0, 5, 1, 4, 2])
    (volume,) = read(tmp_path)
    loaded = LoadImage(reader=MedfedReader(), ensure_channel_first=True)(tmp_path)
    np.testing.assert_array_equal(loaded.numpy(), volume.array)
    np.testing.assert_allclose(loaded.affine.numpy(), volume.affine_ras)
    assert not any("CANARY" in str(value) for value in loaded.meta.values())


def test_several_volumes_are_refused(tmp_path):
    write_series(tmp_path, Series())
    write_series(tmp_path, Series())
    with pytest.raises(ImageError, match="2 volumes where MONAI takes one"):
        MedfedReader().read(tmp_path)


def test_paths_of_one_case_become_channels(tmp_path):
    series = Series()
    write_series(tmp_path / "a", series)
    write_series(tmp_path / "b", Series(uids=series.uids))
    reader = MedfedReader()
    array, meta = reader.get_data(reader.read([tmp_path / "a", tmp_path / "b"]))
    assert array.shape == (2, 7, 5, 6)
    assert meta["original_channel_dim"] == 0
    write_series(tmp_path / "c", hs.Series(step_mm=1.0))
    with pytest.raises(ImageError, match="different grids"):
        reader.get_data(reader.read([tmp_path / "a", tmp_path / "c"]))
