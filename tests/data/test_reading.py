"""Each option of the readers is a key, its message names the key, and a site is only ever stricter."""

from __future__ import annotations

import hard_series as hs
import msgspec
import numpy as np
import pytest

from medfed.data.case_reading import read_image
from medfed.data.reading import Reading, SiteReading
from medfed.data.settings import Images
from medfed.errors import ImageError


def settings(**reading) -> Images:
    return msgspec.convert({"kind": "images", "read": reading}, Images)


def test_the_keys_are_those_of_the_reader(tmp_path):
    paths = hs.write_series(tmp_path, hs.Series(shape=(7, 5, 6)))
    paths[3].unlink()
    with pytest.raises(ImageError, match=r"missing.*data\.read\.uneven"):
        read_image([tmp_path], settings())
    volume = read_image([tmp_path], settings(uneven="resample"))
    assert volume.shape == (6, 5, 7)
    assert "resampled" in volume.info.flags
    with pytest.raises(ImageError, match=r"data\.read\.max_bytes"):
        read_image([tmp_path], settings(uneven="resample", max_bytes=10))


def test_a_site_is_stricter_and_has_its_own_memory():
    study = Reading(tilt="resample", uneven="resample", padding="nan", max_bytes=100)
    assert SiteReading().over(study) == study
    own = SiteReading(uneven="refuse", max_bytes=200).over(study)
    assert own == Reading(tilt="resample", padding="nan", max_bytes=200)
    for laxer in ({"uneven": "resample"}, {"tilt": "affine"}, {"overlap": "later"}, {"padding": "nan"}):
        with pytest.raises(msgspec.ValidationError, match=r"Invalid enum value|unknown field|Expected"):
            msgspec.convert(laxer, SiteReading)


def test_padding_is_as_the_study_says(tmp_path):
    def pad(ds, k):
        ds.PixelPaddingValue = 0
        ds.PixelData = bytes(2 * ds.Rows * ds.Columns) if k == 2 else ds.PixelData

    hs.write_series(tmp_path, hs.Series(), pad)
    assert np.isnan(read_image([tmp_path], settings(padding="nan")).array).any()
    assert not np.isnan(read_image([tmp_path], settings()).array).any()
