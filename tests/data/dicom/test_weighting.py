"""The weighting of MR series by their description, or by their times."""

from __future__ import annotations

from pathlib import Path

import pytest
from hard_series import Series, make_slice, write

from medfed.data.dicom.listing_header import ListingHeader, read_listing_header


def of(folder: Path, **values: object) -> str:
    ds = make_slice(Series(modality="MR"), 0)
    for name, value in values.items():
        setattr(ds, name, value)
    header = read_listing_header(write(ds, folder / "a.dcm"))
    assert isinstance(header, ListingHeader)
    return header.weighting


@pytest.mark.parametrize(
    ("description", "weighting"),
    [
        ("AX T1 SE", "t1"),
        ("t1_mprage_sag_p2_iso", "t1"),
        ("t1_mprage_tra_KM", "t1c"),
        ("T1+C FS", "t1c"),
        ("AX T1 POST GD", "t1c"),
        ("t2_tse_tra", "t2"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("AX T2 FLAIR", "flair"),
        ("T2*_fl2d", "t2star"),
        ("ep2d_diff_3scan_trace", "dwi"),
        ("ep2d_diff_ADC", "adc"),
        ("PD FS SAG", "pd"),
        ("Survey", ""),
    ],
)
def test_a_description_names_it(tmp_path: Path, description: str, weighting: str) -> None:
    assert of(tmp_path, SeriesDescription=description) == weighting


@pytest.mark.parametrize(
    ("echo", "repetition", "inversion", "weighting"),
    [
        (12, 550, None, "t1"),
        (95, 4500, None, "t2"),
        (120, 9000, 2500, "flair"),
        (15, 2500, None, "pd"),
        (50, 1500, None, ""),
    ],
)
def test_without_a_description_the_times_do(
    tmp_path: Path, echo: float, repetition: float, inversion: float | None, weighting: str
) -> None:
    times = {"EchoTime": echo, "RepetitionTime": repetition}
    if inversion is not None:
        times["InversionTime"] = inversion
    assert of(tmp_path, **times) == weighting
    if weighting == "t1":
        assert of(tmp_path, **times, ContrastBolusAgent="Gadovist") == "t1c"
