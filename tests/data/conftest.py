"""A series in three orientations, and the volume that it is read as."""

from __future__ import annotations

from pathlib import Path

import hard_series as hs
import pytest

from medfed.data.read import read
from medfed.data.volume import Volume


@pytest.fixture(params=[hs.AXIAL, hs.SAGITTAL, hs.OBLIQUE], ids=["axial", "sagittal", "oblique"])
def series(request: pytest.FixtureRequest) -> hs.Series:
    return hs.Series(shape=(6, 9, 11), orientation=request.param)


@pytest.fixture
def volume(tmp_path: Path, series: hs.Series) -> Volume:
    hs.write_series(tmp_path / "ct", series)
    return read(tmp_path / "ct")[0]
