"""SUV of PET by the published formula, computed by hand, and refused where an element is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hard_series import Series, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from medfed.data.read import read
from medfed.data.volume import Volume
from medfed.errors import ImageError

SERIES = Series(modality="PT", slope=2.0, intercept=0.0)
HALF_LIFE_S = 6586.2  # of fluorine-18


def pet(folder: Path, pet: str = "suv", **changes: object) -> Volume:
    """Write a series and read it: 70 kg, 370 MBq of fluorine-18, injected an hour before the scan."""

    def edit(ds: Dataset, k: int) -> None:
        isotope = Dataset()
        isotope.RadionuclideTotalDose, isotope.RadionuclideHalfLife = "370000000", str(HALF_LIFE_S)
        isotope.RadiopharmaceuticalStartTime = "110000.00"
        ds.Units, ds.CorrectedImage, ds.DecayCorrection = "BQML", ["NORM", "ATTN", "DECY", "SCAT"], "START"
        ds.PatientWeight = "70"
        ds.SeriesDate = ds.AcquisitionDate = "20200102"
        ds.SeriesTime, ds.AcquisitionTime = "120000", f"12000{k}.500000"
        for name, value in changes.items():
            target = isotope if name.startswith("Radi") else ds
            if callable(value):
                setattr(target, name, value(k))
            elif value is None:
                delattr(target, name)
            elif name == "Philips":
                ds.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0, "DS", value)
            elif name != "items":
                setattr(target, name, value)
        ds.RadiopharmaceuticalInformationSequence = Items([isotope] * int(str(changes.get("items", 1))))

    write_series(folder, SERIES, edit)
    (volume,) = read(folder, pet=pet)
    return volume


def activity() -> np.ndarray:
    slices = [SERIES.stored(k) * 2.0 for k in range(SERIES.shape[0])]
    return np.stack(slices).transpose(2, 1, 0)


def test_suv_is_the_activity_by_the_decayed_dose_and_the_weight(tmp_path: Path) -> None:
    # 3600 s are 0.546597 half-lives: 370 MBq decay to 253.308... MBq; 70000 g / that is 2.7634e-4 per Bq/ml.
    factor = 70_000 / (370e6 * 0.5 ** (3600 / HALF_LIFE_S))
    assert factor == pytest.approx(2.7634e-4, rel=1e-4)
    volume = pet(tmp_path)
    np.testing.assert_allclose(volume.array[0], activity() * factor, rtol=1e-6)
    assert "suv" in volume.info.flags


def test_without_the_key_the_values_are_those_stored(tmp_path: Path) -> None:
    volume = pet(tmp_path, "stored", PatientWeight=None)
    np.testing.assert_array_equal(volume.array[0], activity())
    assert "suv" not in volume.info.flags


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"DecayCorrection": "ADMIN"}, 70_000 / 370e6),
        ({"Units": "GML", "PatientWeight": None}, 1.0),
        # Injected on the day before, an hour before a scan after midnight.
        (
            {"RadiopharmaceuticalStartDateTime": "20200101233000", "SeriesTime": "003000"},
            70_000 / (370e6 * 0.5 ** (3600 / HALF_LIFE_S)),
        ),
        # Philips' own factor from counts, which holds weight, dose and decay.
        ({"Units": "CNTS", "PatientWeight": None, "Philips": "0.000512"}, 0.000512),
        # Rubidium-82, 82 kg, 1.11 GBq, imaged from 90 s after the injection: 90 / 75 half-lives.
        (
            {
                "RadionuclideTotalDose": "1110000000",
                "RadionuclideHalfLife": "75",
                "RadiopharmaceuticalStartTime": "115830",
                "PatientWeight": "82",
            },
            82_000 / (1.11e9 * 0.4352752816),
        ),
        # A time zone that is the series' own, or of which the time without a date says that it is.
        (
            {"RadiopharmaceuticalStartDateTime": "20200102110000+0100", "TimezoneOffsetFromUTC": "+0100"},
            70_000 / (370e6 * 0.5 ** (3600 / HALF_LIFE_S)),
        ),
        (
            {"RadiopharmaceuticalStartDateTime": "20200102110000.00+0100"},
            70_000 / (370e6 * 0.5 ** (3600 / HALF_LIFE_S)),
        ),
    ],
)
def test_other_units_and_corrections(tmp_path: Path, changes: dict[str, object], factor: float) -> None:
    np.testing.assert_allclose(pet(tmp_path, **changes).array[0], activity() * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"PatientWeight": None}, r"without PatientWeight \(0010,1030\)"),
        ({"PatientWeight": "70000"}, "no weight in kg"),
        ({"RadionuclideTotalDose": None}, "without RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": "0"}, "without RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": None}, "without a date and RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartTime": "130000"}, "is later than the series"),
        ({"SeriesTime": None}, "without a date and SeriesTime"),
        ({"SeriesTime": "120500"}, "later than its first image's"),
        ({"DecayCorrection": "NONE"}, "neither START nor ADMIN"),
        ({"CorrectedImage": ["DECY"]}, "corrected for attenuation and decay"),
        ({"Units": "CNTS"}, "not BQML, GML"),
        ({"Units": "GML", "SUVType": "LBM"}, "not BQML, GML"),
        ({"Units": "CNTS", "Philips": "0"}, "without .*7053,1000"),
        ({"RadiopharmaceuticalStartDateTime": "20200101110000"}, "14 half-lives apart, at most 10"),
        ({"RadiopharmaceuticalStartDateTime": "20190102110000"}, r"half-lives apart"),
        ({"RadiopharmaceuticalStartDateTime": "20200102100000+0000"}, "the series names none"),
        (
            {"RadiopharmaceuticalStartDateTime": "20200102110000+0000", "TimezoneOffsetFromUTC": "+0100"},
            "in another time zone than the series",
        ),
        ({"items": 2}, "several items in RadiopharmaceuticalInformationSequence"),
    ],
)
def test_what_lacks_an_element_is_refused(tmp_path: Path, changes: dict[str, object], match: str) -> None:
    with pytest.raises(ImageError, match=match):
        pet(tmp_path, **changes)


def test_two_doses_in_one_series_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="different doses or weights"):
        pet(tmp_path, RadionuclideTotalDose=lambda k: str(370_000_000 + k // 5))


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="pet is 'stored' or 'suv'"):
        pet(tmp_path, "suvbw")
