"""A tree of DICOM series, as an archive exports them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from medfed.data.case import ImageSource
from medfed.data.dicom.listing_header import MIN_SLICES, ListingHeader
from medfed.data.dicom.patients import Key, group_by_patient
from medfed.data.layouts._class_words import is_class_name
from medfed.data.layouts._dicom_choice import SeriesChoice, choose_series
from medfed.data.layouts._dicom_series import (
    DicomFiles,
    Series,
    Sources,
    by_echo,
    match_labels,
    without_short,
)
from medfed.data.layouts._files import split_folders
from medfed.data.layouts._layout import CaseListing, Layout, ListedCase
from medfed.data.layouts._survey import Survey

SHORT = f"an image of a series of fewer than {MIN_SLICES} slices, like a localizer"
BESIDE_VOLUMES = "a radiograph beside volumes"
NOT_CHOSEN = "an image of a series that `series` does not choose"
UNMATCHED = "a segmentation or structure set of no listed series"


class DicomTree(Layout, tag="dicom_tree", frozen=True):
    """DICOM files anywhere below the folder: one case per image series, with the labels that reference it.

    series: the channels of a case, each one series of a study, chosen by its description, modality or
    weighting; without it every series of at least five slices is a case of its own. Each echo of a
    multi-echo series can be chosen like a series; without a choice such a series is a case that is refused.
    Radiographs are cases, one per image, in a folder without volumes.

    A segmentation or structure set belongs to the series it references (ReferencedSeriesSequence); if it
    references none, to the only series in its frame of reference. Files of one series may lie in several
    folders, and a folder may hold several series. Patients are told apart as in data/dicom/patients.py.
    """

    title: ClassVar[str] = "a tree of DICOM series"
    needs: ClassVar[str] = "DICOM series, in any folders"
    order: ClassVar[int] = 90

    series: tuple[SeriesChoice, ...] = ()

    def evidence(self, survey: Survey) -> str | None:
        count = sum(file.format == "dicom" for file in survey.files)
        return f"it holds {count} DICOM files" if count else None

    def read(self, survey: Survey) -> CaseListing:
        files = DicomFiles.of(file.path for file in survey.files if file.format == "dicom")
        volumes, short = without_short(files.series)
        volumes = by_echo(volumes) if self.series else volumes
        patients, notes = group_by_patient(volumes)
        channels, choice_notes = self._channels(volumes)
        case_of = {key: number for number, keys in enumerate(channels) for key in keys if key is not None}
        labels = match_labels({key: volumes[key] for key in case_of}, case_of, files.labels)
        sources = Sources.of(survey, files)
        cases = []
        for number, keys in enumerate(channels):
            own = [key for key in keys if key is not None]
            images = [() if key is None else sources.of_series(key[0], volumes[key]) for key in keys]
            cases.append(_case(own, patients[own[0]], images, labels[number]))
        damaged = sources.damaged_series.items()
        cases += [ListedCase(f"damaged {name}", f"damaged {name}", (paths,)) for name, paths in damaged]
        if damaged:
            notes.append(
                f"{len(damaged)} series have no header that can be read, or are files that may be of several"
                " patients' series: each is a case that is refused"
            )
        used = set(_paths(volumes[key] for key in case_of))
        choice_notes += _class_folder_notes(survey, files)
        unused = _paths(members for key, members in volumes.items() if key not in case_of)
        unused = tuple(path for path in dict.fromkeys(unused) if path not in used)
        matched = {path for paths in labels.values() for path in paths}
        left_out = _by_reason(files) | {
            SHORT: _paths(short.values()),
            NOT_CHOSEN if self.series else BESIDE_VOLUMES: unused,
            UNMATCHED: tuple(label.path for label in files.labels if label.path not in matched),
        }
        return CaseListing(
            self.title,
            tuple(cases),
            (*notes, *choice_notes),
            channels=tuple(choice.name for choice in self.series),
            left_out={
                f"DICOM files ({reason})": paths for reason, paths in sorted(left_out.items()) if paths
            },
        )

    def _channels(self, series: Series) -> tuple[Sequence[tuple[Key | None, ...]], list[str]]:
        """Return the series of each case, None for a channel that it lacks, and notes."""
        if self.series:
            studies: dict[str, list[Key]] = defaultdict(list)
            for key in sorted(series):
                # A series without a study is one of its own.
                studies[f"{key[0]}/{series[key][0].study or key[1]}"].append(key)
            return choose_series(studies, series, self.series)
        volumes = [key for key, members in series.items() if not members[0].is_projection]
        return [(key,) for key in sorted(volumes or series)], []


def _class_folder_notes(survey: Survey, files: DicomFiles) -> list[str]:
    """Return a note if the folders of a tree without labels are called by words for findings.

    They are no classes unasked: a tree of patients may be sorted so for another reason, and a segmentation
    of such a tree would lose its labels.
    """
    parents = split_folders(survey).values()
    names = {name for parent in parents for name in survey.subfolders(*parent)}
    if files.labels or len(names) < 2 or not all(map(is_class_name, names)):
        return []
    return [
        f"{len(names)} folders are called by words for findings: if they are the classes of what lies in "
        "them, say `layout: class_folders`"
    ]


def _paths(groups: Iterable[Sequence[ListingHeader]]) -> tuple[Path, ...]:
    return tuple(member.path for members in groups for member in members)


def _by_reason(files: DicomFiles) -> dict[str, tuple[Path, ...]]:
    """Return the files that are no slice of a volume, by what they are."""
    reasons: dict[str, list[Path]] = defaultdict(list)
    for other in files.others:
        reasons[other.non_volume].append(other.path)
    for broken in files.damaged:
        if broken.non_volume:
            reasons[broken.non_volume].append(broken.path)
    return {reason: tuple(paths) for reason, paths in reasons.items()}


def _case(
    keys: Sequence[Key], patient: str, sources: Sequence[ImageSource], labels: Sequence[Path]
) -> ListedCase:
    single = labels[0] if len(labels) == 1 else None
    # Several labels are told apart by the names inside them.
    masks = tuple(("", path) for path in labels) if len(labels) > 1 else ()
    return ListedCase("+".join("/".join(key) for key in keys), patient, tuple(sources), single, masks=masks)
