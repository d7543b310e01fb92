"""Small DICOM series with chosen header values, for the tests of DICOM layouts."""

from __future__ import annotations

from pathlib import Path

from hard_series import Series, write_series
from pydicom.dataset import Dataset


def put(folder: Path, series: Series | None = None, **values: object) -> list[Path]:
    """Write a series with these header values, and return its files."""

    def edit(ds: Dataset, _: int) -> None:
        for name, value in values.items():
            setattr(ds, name, value)

    return write_series(folder, series or Series(), edit)


def mr(folder: Path, description: str, study: str, slices: int = 6, **values: object) -> None:
    series = Series(shape=(slices, 5, 7), modality="MR", slope=1.0, intercept=0.0)
    put(
        folder,
        series,
        SeriesDescription=description,
        StudyInstanceUID=study,
        FrameOfReferenceUID="1.2.5",
        **values,
    )
