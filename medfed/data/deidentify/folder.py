"""De-identification of a folder: which objects are written, where, and why others are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from medfed.data.cache_location import NAME
from medfed.data.deidentify.attributes import Options, clean_dataset
from medfed.data.deidentify.rules import MODALITIES, OFTEN_BURNED_IN
from medfed.data.deidentify.secret import SiteSecret
from medfed.data.dicom.suppress_logs import suppress_dicom_logs
from medfed.data.splits import check_secret
from medfed.data.walk import files_below, is_system_folder
from medfed.errors import DataError
from medfed.files import replacing

LINK = "a link, which is not followed"
SYSTEM_FOLDER = "a hidden folder, or one of the system like a recycle bin"


@dataclass(frozen=True, slots=True)
class Deidentified:
    """Counts of what was written, and of what was left out for each reason."""

    files: int
    patients: int
    series: int
    left_out: tuple[tuple[str, int], ...]


def deidentify(
    source: str | Path,
    target: str | Path,
    *,
    site_secret: bytes,
    options: Options | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Deidentified:
    """Write de-identified copies of the DICOM images, segmentations and structure sets below a folder.

    Each file is written as target/patient/series/instance.dcm, with names derived from the secret. An object
    that cannot be made safe (text in the picture, another kind of object, a damaged file) is left out and
    counted by reason. `on_progress` receives the number of files done and in total.

    Raises:
        DataError: if the target is not empty or lies in the source, or the secret is too short.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    _check_arguments(source, target, site_secret)
    below = files_below(source, follow_links=False)
    files = [path for path in below if not path.is_symlink()]
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    left_out = _not_looked_into(source)
    left_out.update([LINK] * (len(below) - len(files)))
    patients: set[str] = set()
    series: set[str] = set()
    written = 0
    for done, path in enumerate(files, start=1):
        outcome = _write_one(path, target, SiteSecret(site_secret), options or Options())
        if isinstance(outcome, str):
            left_out[outcome] += 1
        else:
            written += 1
            patients.add(outcome[0])
            series.add(outcome[1])
        on_progress(done, len(files))
    return Deidentified(written, len(patients), len(series), tuple(left_out.most_common()))


def _not_looked_into(source: Path) -> Counter[str]:
    """Return how many folders are links, or hidden or of the system, by reason."""
    counts: Counter[str] = Counter()
    for parent, folders, _ in os.walk(source):
        folders[:] = [name for name in folders if name != NAME]
        system = [name for name in folders if is_system_folder(name)]
        folders[:] = [name for name in folders if name not in system]
        counts.update([SYSTEM_FOLDER] * len(system))
        counts.update([LINK] * sum(Path(parent, name).is_symlink() for name in folders))
    return counts


def _check_arguments(source: Path, target: Path, site_secret: bytes) -> None:
    check_secret(site_secret)
    if not source.is_dir():
        raise DataError("the folder to read does not exist; name a folder with DICOM files")
    if target == source or source in target.parents:
        raise DataError("the folder to write lies in the folder to read; name one outside")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError("the folder to write exists and is not empty; name a new one")


def _write_one(path: Path, target: Path, secret: SiteSecret, options: Options) -> tuple[str, str] | str:
    """Write one file; return its patient and series, or the reason why it was left out."""
    with suppress_dicom_logs():
        try:
            dataset = pydicom.dcmread(path, force=True)
            if "SOPClassUID" not in dataset or "SOPInstanceUID" not in dataset:
                return "no DICOM object"
            refusal = _refusal(dataset)
            if refusal:
                return refusal
            clean = clean_dataset(dataset, secret, options)
            folder = target / str(clean.PatientID) / secret.hex("series", str(clean.SeriesInstanceUID))[:16]
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            written = folder / f"{secret.hex('instance', str(clean.SOPInstanceUID))[:24]}.dcm"
            if written.exists():
                return "a second copy of an instance"
            with replacing(written) as unfinished:
                clean.save_as(unfinished, enforce_file_format=True)
        except Exception as failure:  # noqa: BLE001 - its message may quote header values
            return f"a file that cannot be read or written ({type(failure).__name__})"
    return str(clean.PatientID), str(clean.SeriesInstanceUID)


def _refusal(dataset: Any) -> str:
    """Return why an object cannot be made safe, or an empty string if it can."""
    modality = str(dataset.get("Modality", ""))
    if modality not in MODALITIES:
        return "a report, document or other object without an image"
    if "PixelData" not in dataset and modality != "RTSTRUCT":
        return "an object without pixels"
    if str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.7"):
        return "a secondary capture, which may show a name"
    burned = str(dataset.get("BurnedInAnnotation", "")).strip().upper()
    if burned == "YES":
        return "text in the picture (BurnedInAnnotation)"
    if modality in OFTEN_BURNED_IN and burned != "NO":
        return "a modality that often has text in the picture, and no BurnedInAnnotation 'NO'"
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        return "a colour picture, which may show a name"
    return ""
