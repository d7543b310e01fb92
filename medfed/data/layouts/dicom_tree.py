"""A tree of DICOM series, as an archive exports them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from medfed.data.cache_location import files_below
from medfed.data.dicom.suppress_logs import suppress_dicom_logs
from medfed.data.layouts._files import may_be_dicom
from medfed.data.layouts._layout import CaseError, CaseListing, Layout, ListedCase
from medfed.errors import DataError

if TYPE_CHECKING:
    import pydicom

# Modalities that hold no image volume of their own; they are left out with a count.
NOT_IMAGES = ("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "FID", "RWV", "OT")
LABELS = ("SEG", "RTSTRUCT")

# A localizer has a few slices; a volume worth training on has more.
MIN_SLICES = 5

TAGS = [
    "Modality",
    "PatientID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "NumberOfFrames",
    "ReferencedFrameOfReferenceSequence",
    "SOPClassUID",
]


@dataclass(frozen=True, repr=False)
class _Header:
    path: Path
    modality: str
    patient: str
    series: str
    frame: str
    references: tuple[str, ...]
    frames: int


# The headers of each series. Two patients may share a series UID after a careless anonymisation; they are two
# cases, so the key is the patient and the UID.
_Series = dict[tuple[str, str], list[_Header]]


class DicomTree(Layout, tag="dicom_tree", frozen=True):
    """DICOM files anywhere below the folder: one case per image series, with the label that references it.

    A SEG or RTSTRUCT belongs to the series it references (ReferencedSeriesSequence); if it references none,
    to the only series in its frame of reference.
    """

    title: ClassVar[str] = "a tree of DICOM series"
    evidence: ClassVar[str] = "DICOM series"
    order: ClassVar[int] = 60

    def recognises(self, folder: Path) -> bool:
        return any(may_be_dicom(path) for path in _files(folder))

    def read(self, folder: Path) -> CaseListing:
        headers = [
            header for path in _files(folder) if may_be_dicom(path) and (header := _header(path)) is not None
        ]
        series = _image_series(headers)
        short = [key for key, members in series.items() if sum(one.frames for one in members) < MIN_SLICES]
        for key in short:
            del series[key]
        labels = [header for header in headers if header.modality in LABELS]
        label_of = _match_labels(series, labels)
        cases = tuple(
            ListedCase(
                id="/".join(key),
                patient=key[0] or key[1],
                image=(_series_path(members, headers),),
                label=label_of.get(key),
            )
            for key, members in sorted(series.items())
        )
        others = sum(header.modality in NOT_IMAGES for header in headers) - len(labels)
        notes = (
            (len(short), f"series with fewer than {MIN_SLICES} slices are left out (localizers)"),
            (others, "objects that hold no volume are left out (SR, PR, KO, ...)"),
            (len(labels) - len(label_of), "label objects match no series and are left out"),
        )
        return CaseListing(self.title, cases, tuple(f"{count} {text}" for count, text in notes if count > 0))


def _image_series(headers: Sequence[_Header]) -> _Series:
    series: _Series = {}
    for header in headers:
        if header.modality not in NOT_IMAGES:
            series.setdefault((header.patient, header.series), []).append(header)
    return series


def _match_labels(series: _Series, labels: Sequence[_Header]) -> dict[tuple[str, str], Path]:
    """Return the label object of each series that has one.

    Raises:
        CaseError: if two objects reference one series.
    """
    matched: dict[tuple[str, str], Path] = {}
    for label in labels:
        if label.references:
            keys = [key for key in series if key[0] == label.patient and key[1] in label.references]
        else:
            keys = [
                key
                for key, members in series.items()
                if key[0] == label.patient and members[0].frame == label.frame != ""
            ]
        if len(keys) != 1:
            continue
        if keys[0] in matched:
            raise CaseError(
                "/".join(keys[0]),
                "two label objects reference its series; keep the right one, or list the cases in cases.csv",
            )
        matched[keys[0]] = label.path
    return matched


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


def _header(path: Path) -> _Header | None:
    """Return the fields of one file's header, or None if it is no DICOM object or is a DICOMDIR."""
    import pydicom

    try:
        with suppress_dicom_logs():
            ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS, force=True)
            if "Modality" not in ds or "SeriesInstanceUID" not in ds:
                return None
            return _Header(
                path=path,
                modality=str(ds.Modality),
                patient=str(ds.get("PatientID", "") or ""),
                series=str(ds.SeriesInstanceUID),
                frame=str(ds.get("FrameOfReferenceUID", "") or ""),
                references=tuple(_referenced_series(ds)),
                frames=int(ds.get("NumberOfFrames", 1) or 1),
            )
    except Exception:  # noqa: BLE001 - pydicom's errors have no common class
        return None


def _referenced_series(ds: pydicom.Dataset) -> Iterator[str]:
    """Yield the series that a SEG or an RTSTRUCT references."""
    for item in ds.get("ReferencedSeriesSequence") or []:
        yield str(item.SeriesInstanceUID)
    for frame in ds.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for item in study.get("RTReferencedSeriesSequence") or []:
                yield str(item.SeriesInstanceUID)
