"""What the listing of a hospital's folder needs of a DICOM file's header, and why a file cannot be listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medfed.data.dicom import tags
from medfed.data.dicom.elements import Elements
from medfed.data.dicom.file import DicomFile, open_dicom
from medfed.data.dicom.frame import PROJECTIONS
from medfed.data.dicom.siemens import is_mosaic, mosaic_slices
from medfed.data.dicom.suppress_logs import suppress_dicom_logs
from medfed.data.dicom.volumes import describe_non_image, is_placed_capture
from medfed.data.dicom.weighting import echo_and_repetition_ms, echoes_ms, weighting
from medfed.errors import ImageError

# A localizer has a few slices; a volume worth training on has more.
MIN_SLICES = 5
LABEL_MODALITIES = ("SEG", "RTSTRUCT")
LOCALIZER = "a localizer"
NO_POSITION = "an image without a position in the patient, like a picture of a screen"
OTHER_IMAGE = "an image of modality OT (other), which may show anything"


@dataclass(frozen=True, repr=False)
class ListingHeader:
    """The fields of one file's header that decide its series, its patient and whether it is listed.

    patient, name, birth_date: of the patient, empty if absent.  references: the series that a label names.
    slices: how many slices the file holds.  placed: whether it says where they are.  instance: the file's own
    UID.  non_volume: why the file is no slice of a volume, or ''; it may be printed.  weighting: t1,
    t2, ... of MR, or ''.  echo_ms, repetition_ms: of MR, 0 if unknown.  echo_number: as it is written.
    placed_capture: whether it is a secondary capture that may be a slice, if the folder holds no volume.
    echoes: of a file that holds several, each echo time and its number of slices.  is_echo: whether this
    stands for one echo of a file.
    """

    path: Path
    modality: str
    patient: str
    name: str
    birth_date: str
    study: str
    series: str
    frame: str
    references: tuple[str, ...]
    slices: int
    placed: bool
    instance: str
    non_volume: str
    description: str
    weighting: str
    echo_ms: float = 0.0
    repetition_ms: float = 0.0
    echo_number: str = ""
    placed_capture: bool = False
    echoes: tuple[tuple[float, int], ...] = ()
    is_echo: bool = False

    @property
    def is_label(self) -> bool:
        """Whether the file is a segmentation or a structure set."""
        return self.modality in LABEL_MODALITIES

    @property
    def is_projection(self) -> bool:
        """Whether the file is a radiograph, without a place in the patient."""
        return self.modality.encode() in PROJECTIONS and not self.placed and not self.non_volume


@dataclass(frozen=True, repr=False)
class DamagedFile:
    """A file that is DICOM by name or bytes and whose header cannot be read.

    series, patient: if the header holds that much.  non_volume: what it was, if it says that it is no
    image.
    """

    path: Path
    series: str = ""
    patient: str = ""
    non_volume: str = ""


def read_listing_header(path: Path) -> ListingHeader | DamagedFile:
    """Return what one file's header says; a file that is DICOM by name only counts as damaged."""
    try:
        file = open_dicom(os.fspath(path)) if path.stat().st_size else None
        header = None if file is None else _header(path, file)
    except (ImageError, OSError):
        header = None
    return _damaged(path) if header is None else header


def _header(path: Path, file: DicomFile) -> ListingHeader | None:
    header = file.elements
    placed = tags.PER_FRAME in header or bool(header.text(tags.POSITION) and header.text(tags.ORIENTATION))
    non_volume = describe_non_image(file) or ""
    modality, series = _text(header, tags.MODALITY), _text(header, tags.SERIES_UID)
    if not non_volume and not (modality and series):
        return None  # the header ends before them, between two elements
    frames = header.count(tags.FRAMES) or 1
    echo_ms, repetition_ms = echo_and_repetition_ms(header)
    echoes = echoes_ms(header) if modality == "MR" and frames > 1 else {}
    return ListingHeader(
        path=path,
        modality=modality,
        patient=_text(header, tags.PATIENT_ID),
        name=_text(header, tags.PATIENT_NAME).rstrip("^ ").lower(),
        birth_date=_text(header, tags.BIRTH_DATE),
        study=_text(header, tags.STUDY_UID),
        series=series,
        frame=_text(header, tags.FRAME_UID),
        references=tuple(_referenced_series(header)) if modality in LABEL_MODALITIES else (),
        # A mosaic that has lost its description is a volume that is refused, not a short series.
        slices=max(MIN_SLICES, mosaic_slices(header)) if frames == 1 and is_mosaic(header) else frames,
        placed=placed,
        instance=_text(header, tags.SOP_UID),
        non_volume=non_volume or _why_no_slice(header, modality, placed),
        description=_text(header, tags.SERIES_DESCRIPTION) or _text(header, tags.PROTOCOL),
        weighting=weighting(header) if modality == "MR" else "",
        echo_ms=echo_ms,
        repetition_ms=repetition_ms,
        echo_number=_text(header, tags.ECHO_NUMBER),
        echoes=tuple(sorted(echoes.items())) if len(echoes) > 1 else (),
        placed_capture=is_placed_capture(file) and b"LOCALIZER" not in header.texts(tags.IMAGE_TYPE),
    )


def _why_no_slice(header: Elements, modality: str, placed: bool) -> str:
    """Return why an image is no slice of a volume and no radiograph, or ''."""
    if b"LOCALIZER" in header.texts(tags.IMAGE_TYPE):
        return LOCALIZER
    if modality == "OT":
        return OTHER_IMAGE
    several = (header.count(tags.FRAMES) or 1) > 1 and tags.PER_FRAME not in header
    if several or (not placed and modality.encode() not in PROJECTIONS):
        return NO_POSITION
    return ""


def _referenced_series(header: Elements) -> Iterator[str]:
    """Yield the series that a segmentation or a structure set references."""
    for item in header.items(tags.REFERENCED_SERIES):
        yield _text(item, tags.SERIES_UID)
    for frame in header.items(tags.RT_FRAMES):
        for study in frame.items(tags.RT_STUDIES):
            for item in study.items(tags.RT_SERIES):
                yield _text(item, tags.SERIES_UID)


def _text(header: Elements, tag: int) -> str:
    # A character set only matters to a person: within one hospital the same bytes are the same name.
    return header.text(tag).decode("utf-8", "replace")


def _damaged(path: Path) -> DamagedFile:
    """Return what a lenient reader still finds in a damaged header."""
    import pydicom

    try:
        with suppress_dicom_logs():
            wanted = ["SeriesInstanceUID", "Modality", "PatientID"]
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted, force=True)
            modality = str(header.get("Modality", "") or "")
            return DamagedFile(
                path,
                str(header.get("SeriesInstanceUID", "") or ""),
                str(header.get("PatientID", "") or ""),
                "a damaged report, presentation state or label" if modality in _NEVER_IMAGES else "",
            )
    except Exception:  # noqa: BLE001 - pydicom's errors have no common class
        return DamagedFile(path)


_NEVER_IMAGES = frozenset(("SR", "PR", "KO", "DOC", "RTPLAN", "RTDOSE", "REG", "FID", "RWV", "PLAN"))
