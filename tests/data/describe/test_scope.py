"""Which numbers describe a study: public edges, fixed words, and nothing of a name."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data import histogram
from medfed.data.describe.blocks import length_of
from medfed.data.describe.scope import (
    SCANNERS,
    SEXES,
    VOLUME_BINS,
    Scope,
    age_bin,
    bin_to_volume,
    blocks_of,
    first_intensity_bin,
    intensity_bins,
    scanner_group,
    sex_group,
    volume_bin,
)
from medfed.data.settings import Images, Table


def test_every_intensity_has_a_bin():
    values = np.array([-np.float64(1e30), -1024.0, -1e-9, 0.0, 1e-9, 3.0, 3071.0, 1e30])
    for grid in ("hu", "relative"):
        numbers = histogram.intensity_bins(values, grid) - first_intensity_bin(grid)
        assert (numbers.min(), numbers.max()) == (0, intensity_bins(grid) - 1)


@pytest.mark.parametrize(
    "name, group",
    [
        ("SIEMENS Avanto (MRN 123)", "Siemens"),
        ("GE", "GE"),
        ("GE Optima", "GE"),
        ("Generic", "another"),
        ("Toshiba", "Canon (Toshiba)"),
        ("Dr. Meyer's own", "another"),
    ],
)
def test_a_scanner_is_one_of_a_list_and_its_name_stays(name, group):
    assert SCANNERS[scanner_group(name)] == group
    assert scanner_group(" ") == len(SCANNERS)


def test_sexes_and_ages_and_volumes_have_groups():
    assert [sex_group(word) for word in ("F", "female", "M", "x", "")] == [0, 0, 1, 2, len(SEXES)]
    assert [age_bin(years) for years in (0, 4.9, 5, 84.9, 85, 129)] == [0, 0, 1, 16, 17, 17]
    assert (volume_bin(1e-9), volume_bin(1.0), volume_bin(1e9)) == (0, 60, VOLUME_BINS - 1)
    assert bin_to_volume(60) == pytest.approx(1.0)


def test_a_block_stands_for_each_part_of_a_study():
    table = Table(features=("age", "stage"), categorical={"stage": ("I", "II", "III")}, time="t", event="e")
    names = {block.name: block.size for block in blocks_of(Scope(table, "survival"))}
    assert (names["event"], names["columns.counted"], names["words.0"]) == (4, 1, 5)
    assert "spacing.x" not in names
    images = Scope(Images(channels=2), "segment", ("background", "a", "b"))
    names = {block.name: block.size for block in blocks_of(images)}
    assert {"intensity.1", "structure.1", "volume.1"} <= set(names)
    assert not {"intensity.2", "structure.2", "target"} & set(names)
    planes = Scope(
        Images(spatial_dims=2, spacing_mm=(1.0, 1.0), patch=(32, 32)), "segment", ("background", "a")
    )
    assert "volume.0" not in {block.name for block in blocks_of(planes)}
    assert length_of(blocks_of(images)) == sum(block.size * block.digits for block in blocks_of(images))
