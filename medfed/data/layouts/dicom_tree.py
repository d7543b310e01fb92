"""A tree of DICOM series, as an archive exports them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medfed.data.cache_location import files_below
from medfed.data.dicom.file import is_dicom
from medfed.data.index import Case
from medfed.data.layouts._layout import Found
from medfed.data.splits import UNASSIGNED, case_token
from medfed.errors import DataError

# What is known to hold no image volume of its own; it is left out with a count.
NOT_IMAGES = ("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "FID", "RWV", "OT")

# A localizer has a few slices; a volume worth training on has more.
FEWEST_SLICES = 5


@dataclass(frozen=True)
class _Header:
    path: Path
    modality: str
    patient: str
    series: str
    frame: str
    references: tuple[str, ...]
    frames: int


def is_dicom_tree(folder: Path) -> bool:
    """Whether a DICOM file lies anywhere below."""
    return any(_may_be_dicom(path) for path in _files(folder))


def dicom_tree(folder: Path, site_secret: bytes) -> Found:
    """List the image series of a tree, each with the DICOM SEG (or RTSTRUCT) that references it.

    A label belongs to the series it references (ReferencedSeriesSequence); failing that, to the only series
    in its frame of reference.
    """
    headers = [
        header for path in _files(folder) if _may_be_dicom(path) and (header := _header(path)) is not None
    ]
    series: dict[tuple[str, str], list[_Header]] = {}
    labels = [header for header in headers if header.modality in ("SEG", "RTSTRUCT")]
    others = 0
    for header in headers:
        if header.modality not in NOT_IMAGES:
            # Two patients may share a series UID after a careless anonymisation; they are two cases.
            series.setdefault((header.patient, header.series), []).append(header)
        elif header not in labels:
            others += 1
    short = [
        key for key, members in series.items() if sum(member.frames for member in members) < FEWEST_SLICES
    ]
    for key in short:
        del series[key]
    label_of = _match(series, labels, site_secret)
    cases = []
    for (patient, uid), members in sorted(series.items()):
        identity = f"{patient}/{uid}"
        cases.append(
            Case(
                id=identity,
                patient=patient or uid,
                token=case_token(site_secret, identity),
                image=(_series_path(members, headers),),
                label=label_of.get((patient, uid)),
                split=UNASSIGNED,
            )
        )
    notes = []
    if short:
        notes.append(f"{len(short)} series with fewer than {FEWEST_SLICES} slices are left out (localizers)")
    if others:
        notes.append(f"{others} objects that hold no volume are left out (SR, PR, KO, ...)")
    if len(labels) > len(label_of):
        notes.append(f"{len(labels) - len(label_of)} label objects match no series and are left out")
    return Found("a tree of DICOM series", tuple(cases), tuple(notes))


def _match(
    series: dict[tuple[str, str], list[_Header]], labels: list[_Header], site_secret: bytes
) -> dict[tuple[str, str], Path]:
    found: dict[tuple[str, str], Path] = {}
    for label in labels:
        keys = [key for key in series if key[0] == label.patient and key[1] in label.references]
        if not label.references:
            keys = [
                key
                for key, members in series.items()
                if key[0] == label.patient and members[0].frame == label.frame != ""
            ]
        if len(keys) != 1:
            continue
        if keys[0] in found:
            token = case_token(site_secret, "/".join(keys[0]))
            raise DataError(
                f"case {token}: two label objects reference its series; keep the one that is meant, or "
                "list cases in cases.csv"
            )
        found[keys[0]] = label.path
    return found


def _series_path(members: list[_Header], headers: list[_Header]) -> Path:
    """Return the folder that holds this series and no other image, or the one file that is the series."""
    if len(members) == 1:
        return members[0].path
    folders = {member.path.parent for member in members}
    own = {member.path for member in members}
    crowded = any(
        h.path.parent in folders and h.path not in own and h.modality not in NOT_IMAGES for h in headers
    )
    if len(folders) > 1 or crowded:
        raise DataError(
            "a DICOM series shares its folder with another one, or is spread over several folders; "
            "put each series into a folder of its own (dcmsort and most archives' exports do)"
        )
    return folders.pop()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder) if not path.name.startswith("."))


def _may_be_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble, or at least its suffix."""
    return is_dicom(path) or path.suffix.lower() == ".dcm"


def _header(path: Path) -> _Header | None:
    """Return what matters of one file's header, or None for a file that is no DICOM object or a directory of
    them.
    """
    import warnings

    import pydicom

    tags = [
        "Modality",
        "PatientID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "ReferencedSeriesSequence",
        "NumberOfFrames",
        "ReferencedFrameOfReferenceSequence",
        "SOPClassUID",
    ]
    try:
        with warnings.catch_warnings():  # pydicom's warnings quote header values
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            if "Modality" not in ds or "SeriesInstanceUID" not in ds:
                return None
            return _Header(
                path=path,
                modality=str(ds.Modality),
                patient=str(ds.get("PatientID", "") or ""),
                series=str(ds.SeriesInstanceUID),
                frame=str(ds.get("FrameOfReferenceUID", "") or ""),
                references=tuple(_references(ds)),
                frames=int(ds.get("NumberOfFrames", 1) or 1),
            )
    except Exception:
        return None


def _references(ds: object) -> Iterator[str]:
    """Yield the series that a SEG or an RTSTRUCT references."""
    for item in getattr(ds, "ReferencedSeriesSequence", None) or []:
        yield str(item.SeriesInstanceUID)
    for frame in getattr(ds, "ReferencedFrameOfReferenceSequence", None) or []:
        for study in getattr(frame, "RTReferencedStudySequence", None) or []:
            for item in getattr(study, "RTReferencedSeriesSequence", None) or []:
                yield str(item.SeriesInstanceUID)
