"""Values by a real-world mapping: used where nothing else gives them, and told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hard_series import Series, enhanced, make_slice, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from medfed.data.read import read
from medfed.data.volume import Volume
from medfed.errors import ImageError

SERIES = Series(modality="MR", slope=1.0, intercept=0.0)


def mapping(slope: float, intercept: float, last: int = 32767, units: str = "mm2/s") -> Dataset:
    item = Dataset()
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, intercept
    item.add_new(0x00409216, "SS", -32768)
    item.add_new(0x00409211, "SS", last)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = units, "UCUM", "unit"
    item.MeasurementUnitsCodeSequence = Items([code])
    return item


def classic(folder: Path, items: list[Dataset], *, rescale: bool = False, modality: str = "MR") -> Volume:
    series = Series(modality=modality, slope=1.0, intercept=0.0, uids=SERIES.uids)
    folder.mkdir(exist_ok=True)
    for k in range(series.shape[0]):
        ds = make_slice(series, k)
        ds.RealWorldValueMappingSequence = Items(items)
        if rescale:
            ds.RescaleSlope, ds.RescaleIntercept = 2.0, 5.0
        else:
            del ds.RescaleSlope, ds.RescaleIntercept
        write(ds, folder / f"{k}.dcm")
    (volume,) = read(folder)
    return volume


def stored() -> np.ndarray:
    return np.stack([SERIES.stored(k) for k in range(SERIES.shape[0])]).transpose(2, 1, 0).astype(np.float64)


def test_the_only_mapping_is_used_and_told(tmp_path: Path) -> None:
    volume = classic(tmp_path, [mapping(0.25, -3.0)])
    np.testing.assert_allclose(volume.array[0], stored() * 0.25 - 3.0, atol=1e-4)
    assert "real_world_values" in volume.info.flags


def test_a_rescale_comes_first(tmp_path: Path) -> None:
    volume = classic(tmp_path, [mapping(0.25, -3.0)], rescale=True)
    np.testing.assert_array_equal(volume.array[0], stored() * 2 + 5)
    assert not {"real_world_values", "real_world_values_unused"} & set(volume.info.flags)


def test_of_several_mappings_none_is_chosen_and_it_is_told(tmp_path: Path) -> None:
    volume = classic(tmp_path, [mapping(0.25, -3.0), mapping(1.0, 2.0)])
    np.testing.assert_array_equal(volume.array[0], stored())
    assert "real_world_values_unused" in volume.info.flags


def test_a_ct_is_mapped_to_hounsfield_units_only(tmp_path: Path) -> None:
    volume = classic(tmp_path / "hu", [mapping(0.5, -7.0, units="[hnsf'U]")], modality="CT")
    np.testing.assert_allclose(volume.array[0], stored() * 0.5 - 7, atol=1e-4)
    assert "no_rescale" not in volume.info.flags
    volume = classic(tmp_path / "other", [mapping(0.5, -7.0)], modality="CT")
    np.testing.assert_array_equal(volume.array[0], stored())
    assert {"no_rescale", "real_world_values_unused"} <= set(volume.info.flags)


def test_values_outside_the_mapping_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="outside the RealWorldValueMapping"):
        classic(tmp_path, [mapping(0.25, -3.0, last=int(stored().max()) - 1)])


def test_an_enhanced_object_has_a_mapping_per_frame(tmp_path: Path) -> None:
    ds = enhanced(SERIES, [{"k": k} for k in range(SERIES.shape[0])])
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        del group.PixelValueTransformationSequence
        group.RealWorldValueMappingSequence = Items([mapping(0.5, float(k))])
    (volume,) = read(write(ds, tmp_path / "enhanced.dcm"))
    want = stored() * 0.5 + np.arange(SERIES.shape[0])
    np.testing.assert_allclose(volume.array[0], want, atol=1e-4)
    assert "real_world_values" in volume.info.flags
