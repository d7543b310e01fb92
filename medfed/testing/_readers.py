"""The contract of a reader: typed volumes, every voxel at its place, and a damaged file is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from medfed.data.read import read, read_label
from medfed.data.volume import Info, Volume
from medfed.errors import ImageError
from medfed.testing._contract import Contract, raises


@dataclass(frozen=True)
class ReaderExample:
    """A volume in a format, and the reader that should return it.

    write: writes the volume into an empty folder and returns the path to read, a file or a folder.  read: the
    reader; by default medfed's own.  tolerance: by how much a voxel may differ, for a format that rounds.
    private: a text of the file's that names the patient; nothing that is printed may hold it.
    """

    volume: Volume
    write: Callable[[Path], Path]
    read: Callable[[Path], list[Volume]] = read
    tolerance: float = 0.0
    private: str = ""


check_reader: Contract[ReaderExample] = Contract("reader")


def check_values(example: ReaderExample, volume: Volume) -> None:
    np.testing.assert_allclose(volume.affine_ras, example.volume.affine_ras, atol=1e-5)
    np.testing.assert_allclose(volume.array, example.volume.array, rtol=0, atol=example.tolerance)


@check_reader.check
def it_returns_one_typed_volume_without_a_warning(example: ReaderExample) -> None:
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        (volume,) = example.read(example.write(Path(folder)))
    assert isinstance(volume, Volume)
    assert isinstance(volume.info, Info)
    assert volume.array.dtype == np.float32
    assert volume.array.shape == example.volume.array.shape
    assert volume.affine_ras.dtype == np.float64
    assert volume.affine_ras.shape == (4, 4)
    assert not example.private or example.private not in repr(volume.info)


@check_reader.check
def every_voxel_is_at_its_place(example: ReaderExample) -> None:
    with TemporaryDirectory() as folder:
        check_values(example, *example.read(example.write(Path(folder))))


@check_reader.check
def reading_again_gives_the_same_and_shares_nothing(example: ReaderExample) -> None:
    with TemporaryDirectory() as folder:
        path = example.write(Path(folder))
        first, second = example.read(path)[0], example.read(path)[0]
        assert first.info == second.info
        first.array[...] = 0  # a transform may work in place
        first.affine_ras[...] = 0
        check_values(example, second)
        check_values(example, *example.read(path))


@check_reader.check
def a_label_on_its_grid_keeps_its_classes(example: ReaderExample) -> None:
    with TemporaryDirectory() as folder:
        (volume,) = example.read(example.write(Path(folder)))
        values = np.zeros(volume.shape, np.uint8)
        values[1::2] = 2
        with TemporaryDirectory() as labels:
            nib.Nifti1Image(values, volume.affine_ras).to_filename(Path(labels) / "label.nii")  # type: ignore[no-untyped-call]
            label = read_label(Path(labels) / "label.nii", volume, classes=3)
    np.testing.assert_array_equal(label.array[0], values)
    assert np.issubdtype(label.array.dtype, np.integer)


@check_reader.check
def a_truncated_file_is_refused_without_naming_anyone(example: ReaderExample) -> None:
    for share in (0.1, 0.5, 0.99):
        with TemporaryDirectory() as folder:
            path = example.write(Path(folder))
            last = max(path.iterdir()) if path.is_dir() else path
            last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
            with raises(ImageError, "") as refusal:
                example.read(path)
            assert str(path) not in str(refusal.error)
            assert not example.private or example.private not in str(refusal.error)
