"""Radiographs (CR, DX, MG) beside PNG, JPEG and TIFF, by the real commands from `new` to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medfed.cli import main
from medfed.data.read import read
from medfed.evaluation.rows import read_cases
from medfed.runs.folder import RunFolder

torch.set_num_threads(1)

ROWS, COLUMNS = 40, 48
CR, DX, MG = (f"1.2.840.10008.5.1.4.1.1.1.{end}" for end in ("", "1", "2"))
# What writes a film of 0 (black) to 1 (white) as a file without its ending.
Write = Callable[[Path, np.ndarray], None]


def radiograph(kind: str, storage: str, bits: int, *, white_is_0: bool = False, slope: float = 1.0) -> Write:
    """Return what writes a radiograph whose rescaled values are `slope` x stored - 50."""

    def write(path: Path, film: np.ndarray) -> None:
        most = 2**bits - 1
        stored = np.rint((1 - film if white_is_0 else film) * most).astype(np.uint16)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = storage.rstrip(".")
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
        ds.PatientID, ds.Modality, ds.ImageType = path.stem, kind, ["ORIGINAL", "PRIMARY"]
        ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
        ds.PhotometricInterpretation = "MONOCHROME1" if white_is_0 else "MONOCHROME2"
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, -50, "US"
        ds.Rows, ds.Columns = stored.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits, bits - 1
        ds.ImagerPixelSpacing = [0.2, 0.1]
        ds.PixelData = stored.tobytes()
        ds["PixelData"].VR = "OW"
        ds.save_as(path.with_suffix(".dcm"), enforce_file_format=True)

    return write


def picture(suffix: str, dtype: type) -> Write:
    def write(path: Path, film: np.ndarray) -> None:
        values = np.rint(film * np.iinfo(dtype).max).astype(dtype)
        Image.fromarray(values).save(path.with_suffix(suffix))

    return write


WRITERS: dict[str, tuple[Write, str]] = {
    "CR, 12 bits, MONOCHROME1": (radiograph("CR", CR, 12, white_is_0=True), ".dcm"),
    "DX, 16 bits, rescaled": (radiograph("DX", DX, 16, slope=0.5), ".dcm"),
    "MG, 12 bits": (radiograph("MG", MG, 12), ".dcm"),
    "PNG, 16 bits": (picture(".png", np.uint16), ".png"),
    "PNG, 8 bits": (picture(".png", np.uint8), ".png"),
    "JPEG, 8 bits": (picture(".jpg", np.uint8), ".jpg"),
    "TIFF, 16 bits": (picture(".tiff", np.uint16), ".tiff"),
}
HOSPITALS = {
    "north": ("CR, 12 bits, MONOCHROME1", "DX, 16 bits, rescaled", "MG, 12 bits"),
    "south": ("PNG, 16 bits", "JPEG, 8 bits"),
    "west": ("TIFF, 16 bits", "PNG, 8 bits"),
}
# Values by hand of black (0), of a fifth (0.2) and of white (1), as the file's rescaling says.
VALUES = {
    # 4095 and 3276 stored, inverted over 0 to 4095: 0 and 819; each less 50.
    "CR, 12 bits, MONOCHROME1": (-50, 769, 4045),
    "DX, 16 bits, rescaled": (-50, 6503.5, 32717.5),
    "MG, 12 bits": (-50, 769, 4045),
    "PNG, 16 bits": (0, 13107, 65535),
    "PNG, 8 bits": (0, 51, 255),
    "JPEG, 8 bits": (0, 51, 255),
    "TIFF, 16 bits": (0, 13107, 65535),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_white_is_high_and_x_runs_along_the_columns(tmp_path: Path, kind: str) -> None:
    """A film of three blocks of 16 x 16: black at the top left, 0.2 to its right, white below it."""
    film = np.zeros((32, 32))
    film[:16, 16:], film[16:, :16] = 0.2, 1.0
    write, suffix = WRITERS[kind]
    write(tmp_path / "film", film)
    (volume,) = read(tmp_path / f"film{suffix}")
    assert volume.array.shape == (1, 32, 32, 1)
    actual = [float(volume.array[0, x, y, 0]) for x, y in ((0, 0), (31, 0), (0, 31))]
    assert actual == pytest.approx(VALUES[kind], abs=2 if "JPEG" in kind else 1e-3)
    assert volume.spacing_mm == ((0.1, 0.2, 1) if suffix == ".dcm" else (1, 1, 1))


def test_a_real_radiograph_by_its_own_header() -> None:
    """A CR of 12 bits in MONOCHROME1 that pydicom brings: 1994 is stored first, slope .684, intercept 200."""
    path = Path(get_testdata_file("DICOMDIR")).parent / "77654033/CR1/6154"  # type: ignore[arg-type]
    (volume,) = read(path)
    assert "inverted" in volume.info.flags
    # Inverted over all that 12 bits can hold: 0.684 x 4095 + 200 becomes 200, and the reverse.
    assert volume.array[0, 0, 0, 0] == pytest.approx(0.684 * (4095 - 1994) + 200, abs=1e-3)


def fill(folder: Path, kinds: tuple[str, ...], generator: np.random.Generator) -> None:
    """Write 24 films of which every second one has a bright square, and the CSV that says so."""
    folder.mkdir()
    lines = ["case,patient,image,target"]
    for number in range(24):
        film = np.clip(generator.normal(0.3, 0.03, (ROWS, COLUMNS)), 0, 1)
        if number % 2:
            row, column = generator.integers(4, 28, 2)
            film[row : row + 10, column : column + 10] += 0.4
        write, suffix = WRITERS[kinds[number // 2 % len(kinds)]]
        write(folder / f"x{number:02d}", np.clip(film, 0, 1))
        lines.append(f"c{number},p{number},x{number:02d}{suffix},{number % 2}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")


def medfed(*words: object, exits: tuple[int, ...] = (0,)) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code in exits, done.output
    return done.output


@pytest.mark.slow
def test_radiographs_and_pictures_with_a_csv_of_classes_from_new_to_the_report(tmp_path: Path) -> None:
    for seed, (site, kinds) in enumerate(HOSPITALS.items()):
        fill(tmp_path / site, kinds, np.random.default_rng(seed))
    study = tmp_path / "films.yaml"
    said = medfed("new", study, *(tmp_path / site for site in HOSPITALS))
    assert "24 cases of 24 patients, 24 with a class; CR" in said
    text = study.read_text()
    assert "spatial_dims: 2" in text
    assert "spacing_mm: fit" in text
    for site in HOSPITALS:
        result = medfed("check", tmp_path / site, "--study", study, exits=(0, 1))
        assert "can take part in 'films' with 24 cases" in result
    small = ["train.rounds=4", "train.epochs=2", "network.depth=10", "network.width=8", "evaluation.draws=20"]
    small += ["evaluation.smallest_group=1", "evaluation.local_models=false", "evaluation.pooled_model=false"]
    words = [word for one in small for word in ("--set", one)]
    medfed("train", study, "--out", tmp_path / "run", *words)
    run = RunFolder(tmp_path / "run")
    assert run.report.is_file()
    measured = [one for one in read_cases(run.cases) if one.model == "federated"]
    assert {one.site for one in measured} == set(HOSPITALS)
    assert {one.metric for one in measured} == {"probability"}
    medfed("predict", run.path, "--data", tmp_path / "north", "--out", tmp_path / "out")
    predicted = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert len(predicted) == 25
    assert "not predicted" not in "".join(predicted)
