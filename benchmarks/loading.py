"""Compare the reading speed of medfed, other readers and the hardware limit on the same files.

    python benchmarks/loading.py [--slices 200] [--repeats 3] [--kinds uncompressed,rle,...]
    python benchmarks/loading.py --slices 20 --repeats 1  # short: a minute

Each row is one reader. MB/s counts the decoded pixels at two bytes each; the best repeat is shown. 'warm'
reads files in the system's cache, 'cold' reads them after asking the system to drop them (it may keep some).
Readers that are not installed are omitted. The limit only reads the bytes and views them as numbers, so no
reader can be faster. `--clock cpu` measures CPU seconds of this process and its children, both finished and
still running (JPEG lossless), which vary less on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Reader = Callable[[Path], object]


def series(folder: Path, slices: int, kind: str) -> None:
    """Write a CT-like series: smooth body with noise, 12 of 16 bits used, about 100 header elements."""
    import hard_series as hs
    from dicom_encodings import encode
    from pydicom import Dataset, uid

    syntaxes = {
        "uncompressed": uid.ExplicitVRLittleEndian,
        "jpeg-ls": uid.JPEGLSLossless,
        "jpeg 2000": uid.JPEG2000Lossless,
        "rle": uid.RLELossless,
        "jpeg lossless": uid.JPEGLosslessSV1,
    }
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-1, 1, 512), np.linspace(-1, 1, 512))
    body = np.where(x**2 + (1.4 * y) ** 2 < 0.7, 1060 + 60 * np.sin(9 * x) * np.cos(7 * y), 24)
    made = hs.Series(shape=(slices, 8, 8), slope=1.0)
    planes = [(body + np.where(body > 100, rng.normal(0, 12, body.shape), 0)).astype(int) for _ in range(8)]

    encoded: dict[int, Dataset] = {}  # the tests' own encoder of JPEG lossless is slow

    def edit(ds, k):
        hs.put_pixels(ds, planes[k % 8])
        for i in range(70):
            ds.add_new(0x00091001 + i, "LO", f"private element {i}")
        if k % 8 not in encoded:
            encode(ds, syntaxes[kind])
            encoded[k % 8] = ds
        ds["PixelData"] = encoded[k % 8]["PixelData"]
        ds.file_meta.TransferSyntaxUID = syntaxes[kind]

    hs.write_series(folder, made, edit)


def dicom_readers() -> dict[str, Reader]:
    """Return the readers that are installed, by name."""
    readers: dict[str, Reader] = {
        "medfed": _medfed,
        "pydicom loop": _pydicom_loop,
        "MONAI PydicomReader": _monai,
    }
    if importlib.util.find_spec("SimpleITK"):
        readers["SimpleITK"] = _simpleitk
    readers["highdicom"] = _highdicom
    if shutil.which("dcm2niix"):
        readers["dcm2niix"] = _dcm2niix
    return readers


def _medfed(folder: Path) -> object:
    from medfed.data.read import read

    return read(folder)


def _limit(folder: Path) -> object:
    # The minimum work: read the bytes of every file and view them as numbers.
    return [np.frombuffer(path.read_bytes()[-524288:], np.int16) for path in sorted(folder.iterdir())]


def _pydicom_loop(folder: Path) -> object:
    import pydicom

    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    slices.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    return np.stack(
        [ds.pixel_array * np.float32(ds.RescaleSlope) + np.float32(ds.RescaleIntercept) for ds in slices]
    )


def _monai(folder: Path) -> object:
    from monai.data import PydicomReader

    reader = PydicomReader()
    return reader.get_data(reader.read(str(folder)))


def _simpleitk(folder: Path) -> object:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def _highdicom(folder: Path) -> object:
    import highdicom as hd
    import pydicom

    return hd.get_volume_from_series([pydicom.dcmread(path) for path in sorted(folder.iterdir())])


def _dcm2niix(folder: Path) -> object:
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            ["dcm2niix", "-z", "n", "-b", "n", "-o", out, str(folder)], check=True, capture_output=True
        )


def forget(folder: Path) -> None:
    """Ask the system to drop a folder's files from its cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cpu_s() -> float:
    """Return the CPU seconds of this process and its children."""
    finished = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + finished.ru_utime + finished.ru_stime + living_s()


def living_s() -> float:
    """Return the CPU seconds of running children, to 0.01 s, where the system reports them."""
    ticks = 0
    for told in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            fields = told.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def seconds(
    reader: Reader,
    path: Path,
    repeats: int,
    cold: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Return the best time of the repeats, or None if the reader fails."""
    best = None
    for _ in range(repeats):
        if cold:
            forget(path if path.is_dir() else path.parent)
        began = clock()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(path)
        except Exception as error:
            print(f"    {type(error).__name__}", file=sys.stderr)
            return None
        took = clock() - began
        best = took if best is None else min(best, took)
    return best


def dicom_table(
    folder: Path, slices: int, repeats: int, kinds: list[str], clock: Callable[[], float]
) -> None:
    """Print the decoded MB/s of each reader and encoding."""
    rows: dict[str, list[str]] = {}
    for kind in kinds:
        count = slices if kind == "uncompressed" else max(8, slices // 4)
        where = folder / kind.replace(" ", "_")
        series(where, count, kind)
        size = count * 512 * 512 * 2 / 1e6
        readers = dicom_readers() | ({"limit (read and view)": _limit} if kind == "uncompressed" else {})
        _medfed(where)  # do not count imports
        # Take turns, so that other load on the machine affects all readers alike.
        turns = [
            {name: seconds(reader, where, 1, clock=clock) for name, reader in readers.items()}
            for _ in range(repeats)
        ]
        for name, reader in readers.items():
            warm = min((turn[name] or 0.0 for turn in turns), default=0.0)
            cells = rows.setdefault(name, [])
            text = f"{size / warm:.0f}" if warm else "fails"
            if kind == "uncompressed":
                cold = seconds(reader, where, 1, cold=True, clock=clock)
                text += f" (cold {size / cold:.0f})" if cold else ""
            cells.append(text)
        shutil.rmtree(where)
    width = max(map(len, rows))
    print("decoded MB/s".ljust(width), *[kind.rjust(18) for kind in kinds])
    for name, cells in rows.items():
        print(name.ljust(width), *[cell.rjust(18) for cell in cells])


def nifti_table(folder: Path, repeats: int) -> None:
    """Print the milliseconds to read a .nii.gz file of 256 x 256 x 128 int16 voxels."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 256)
    body = 900 * np.exp(-3 * (x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, ::2] ** 2))
    path = folder / "volume.nii.gz"
    nib.Nifti1Image((body + rng.normal(0, 8, body.shape)).astype(np.int16), np.eye(4)).to_filename(path)

    def monai(path: Path) -> object:
        from monai.data import NibabelReader

        reader = NibabelReader()
        return reader.get_data(reader.read(path))

    readers: dict[str, Reader] = {
        "medfed, libdeflate": _without(),
        "medfed, isal": _without("deflate"),
        "medfed, zlib": _without("deflate", "isal"),
        "nibabel": lambda path: np.asarray(nib.load(path).dataobj, np.float32),
        "MONAI NibabelReader": monai,
    }
    if importlib.util.find_spec("SimpleITK"):
        import SimpleITK as sitk

        readers["SimpleITK"] = lambda path: sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    print(f"\n{'.nii.gz 256 x 256 x 128 int16':30} {'CPU ms':>6}")
    for name, reader in readers.items():
        best = seconds(reader, path, repeats + 4, clock=cpu_s)
        print(f"{name:30} {1000 * best:6.0f}" if best else f"{name:30}  fails")


def _without(*modules: str) -> Reader:
    """Return medfed's reader as it behaves without these packages."""

    def reader(path: Path) -> object:
        hidden = {name: sys.modules.get(name) for name in modules}
        sys.modules.update(dict.fromkeys(modules))
        try:
            return _medfed(path)
        finally:
            for name, module in hidden.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module

    return reader


def main() -> None:
    """Write the files, read them with every reader and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", default="uncompressed,jpeg-ls,jpeg 2000,rle,jpeg lossless")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    given = parser.parse_args()
    clock = cpu_s if given.clock == "cpu" else time.perf_counter
    print(f"{given.clock} time, {given.slices} slices of 512 x 512, best of {given.repeats}")
    with tempfile.TemporaryDirectory() as folder:
        dicom_table(Path(folder), given.slices, given.repeats, given.kinds.split(","), clock)
        nifti_table(Path(folder), given.repeats)


if __name__ == "__main__":
    main()
