"""Each option of the readers is a key, its message names the key, and a site is only ever stricter."""

from __future__ import annotations

import hard_series as hs
import msgspec
import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from medfed.data.cache import preparation_recipe
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


def write_pet(folder, **changes):
    """Write a PET series of 2 Bq/ml per step: 370 MBq of F-18 an hour before, a patient of 70 kg."""

    def edit(ds, k):
        isotope = Dataset()
        isotope.RadionuclideTotalDose, isotope.RadionuclideHalfLife = "370000000", "6586.2"
        isotope.RadiopharmaceuticalStartTime = "110000"
        ds.Units, ds.DecayCorrection, ds.CorrectedImage = "BQML", "START", ["DECY", "ATTN"]
        ds.PatientWeight, ds.SeriesDate, ds.AcquisitionDate = "70", "20200102", "20200102"
        ds.SeriesTime, ds.AcquisitionTime = "120000", "120000"
        ds.RadiopharmaceuticalInformationSequence = [isotope]
        for name, value in changes.items():
            setattr(ds, name, value)

    return hs.write_series(folder, hs.Series(modality="PT", slope=2.0, intercept=0.0), edit)


def test_a_study_reads_pet_as_suv_and_the_cache_knows(tmp_path):
    write_pet(tmp_path)
    stored, suv = (read_image([tmp_path], settings(pet=unit)).array for unit in ("stored", "suv"))
    # The dose decays by half every 6586.2 s: 370 MBq are 253.31 MBq after 3600 s.
    np.testing.assert_allclose(suv, stored * (70_000 / (370e6 * 0.5 ** (3600 / 6586.2))), rtol=1e-6)
    recipes = {preparation_recipe(settings(pet=unit), "segment", None) for unit in ("stored", "suv")}
    assert len(recipes) == 2


def test_suv_is_refused_with_the_cure_where_it_cannot_be_computed(tmp_path):
    write_pet(tmp_path / "pet", PatientWeight=None)
    with pytest.raises(ImageError, match=r"without PatientWeight .*export the series with it"):
        read_image([tmp_path / "pet"], settings(pet="suv"))
    hs.write_series(tmp_path / "ct", hs.Series())
    with pytest.raises(ImageError, match=r"data\.read\.pet is 'suv' and the image is no PET series"):
        read_image([tmp_path / "ct"], settings(pet="suv"))
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.eye(4)), tmp_path / "pet.nii.gz")
    with pytest.raises(ImageError, match=r"names neither a modality nor a unit.*data\.read\.pet to 'stored'"):
        read_image([tmp_path / "pet.nii.gz"], settings(pet="suv"))


def test_pet_beside_ct_is_scaled_alone(tmp_path):
    write_pet(tmp_path / "pet")
    hs.write_series(tmp_path / "ct", hs.Series())
    both = read_image([tmp_path / "ct", tmp_path / "pet"], settings(pet="suv", padding="air"))
    assert "suv" in both.info.flags
    np.testing.assert_array_equal(both.array[0], read_image([tmp_path / "ct"]).array[0])
    np.testing.assert_array_equal(both.array[1], read_image([tmp_path / "pet"], settings(pet="suv")).array[0])
