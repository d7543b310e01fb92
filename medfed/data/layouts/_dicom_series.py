"""The DICOM files of a folder as series: their labels, their files, and the files that cannot be read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medfed.data.case import Echo, ImageSource
from medfed.data.dicom.listing_header import MIN_SLICES, DamagedFile, ListingHeader, read_listing_header
from medfed.data.dicom.patients import Key
from medfed.data.layouts._survey import IMAGE_FORMATS, Survey

# Two patients may share a series UID after a careless anonymisation; they are two cases, so a key holds both.
Series = dict[Key, list[ListingHeader]]


@dataclass(frozen=True, repr=False)
class DicomFiles:
    """The DICOM files of a folder: image series, labels, files that are no volume, damaged ones."""

    series: Series
    labels: list[ListingHeader]
    others: list[ListingHeader]
    damaged: list[DamagedFile]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> DicomFiles:
        """Return what the headers of files say."""
        headers = [read_listing_header(path) for path in paths]
        damaged = [header for header in headers if isinstance(header, DamagedFile)]
        listed = [header for header in headers if isinstance(header, ListingHeader)]
        if all(header.non_volume for header in listed):
            # Nothing else is a volume: slices that were stored as secondary captures are.
            listed = [replace(one, non_volume="") if one.placed_capture else one for one in listed]
        labels = [header for header in listed if header.is_label]
        others = [header for header in listed if header.non_volume and not header.is_label]
        series: Series = {}
        for header in listed:
            if not header.non_volume:
                series.setdefault(_series_key(header), []).append(header)
        return cls(_with_missing_ids(series), labels, others, damaged)


def _series_key(header: ListingHeader) -> Key:
    # A series of radiographs holds several views, each an image of its own.
    own = f"/{header.instance}" if header.is_projection and header.instance else ""
    return header.patient, header.series + own


def _with_missing_ids(series: Series) -> Series:
    """Return the series with images that lack PatientID in the only series that they can be of."""
    patients: dict[str, list[str]] = defaultdict(list)
    for patient, uid in series:
        patients[uid].append(patient)
    joined: Series = {}
    for (patient, uid), members in series.items():
        others = [other for other in patients[uid] if other]
        owner = others[0] if not patient and len(others) == 1 else patient
        joined.setdefault((owner, uid), []).extend(members)
    return joined


def without_short(series: Series) -> tuple[Series, Series]:
    """Return the series that may be volumes or radiographs, and those of too few slices."""
    short = {
        key: members
        for key, members in series.items()
        if not members[0].is_projection and sum(one.slices for one in members) < MIN_SLICES
    }
    return {key: members for key, members in series.items() if key not in short}, short


def by_echo(series: Series) -> Series:
    """Return the series, with each echo of a multi-echo acquisition as one of its own.

    Echoes are told apart as the reader does: by EchoNumbers, unless some slices merely lack the only one, and
    by EchoTime to the microsecond; those of one enhanced object by EffectiveEchoTime. A series of which an
    echo would have too few slices for a volume stays whole, and is refused when it is read.
    """
    echoes: Series = {}
    for (patient, uid), whole in series.items():
        members = [part for member in whole for part in _echoes_of(member)]
        groups: dict[str, list[ListingHeader]] = defaultdict(list)
        numbers = {member.echo_number for member in members} - {""}
        only = next(iter(numbers)) if len(numbers) == 1 else ""
        for member in members:
            echo = f"{member.echo_number or only} of {round(member.echo_ms, 3)} ms"
            groups[f"{uid}/echo {echo}"].append(member)
        fewest = min(sum(one.slices for one in group) for group in groups.values())
        if len(groups) > 1 and fewest >= MIN_SLICES:
            echoes |= {(patient, key): group for key, group in groups.items()}
        else:
            echoes[patient, uid] = whole
    return echoes


def _echoes_of(member: ListingHeader) -> list[ListingHeader]:
    """Return a file as one header per echo, if it holds several."""
    return [
        replace(member, echo_ms=echo_ms, slices=slices, echoes=(), is_echo=True)
        for echo_ms, slices in member.echoes
    ] or [member]


def match_labels(
    series: Series, case_of: Mapping[Key, int], labels: Sequence[ListingHeader]
) -> dict[int, list[Path]]:
    """Return the label objects of each case, by its number.

    A label belongs to the case whose series it references, or, if it references none, to the only one in its
    frame of reference.
    """
    by_uid: dict[str, list[Key]] = defaultdict(list)
    by_frame: dict[str, list[Key]] = defaultdict(list)
    for key, members in series.items():
        by_uid[members[0].series].append(key)
        by_frame[members[0].frame].append(key)
    matched: dict[int, list[Path]] = defaultdict(list)
    for label in labels:
        named = [key for uid in label.references for key in by_uid.get(uid, ())]
        if not label.references and label.frame:
            named = by_frame.get(label.frame, [])
        cases = {case_of[key] for key in named if label.patient in ("", key[0])}
        if len(cases) == 1:
            matched[cases.pop()].append(label.path)
    return matched


@dataclass(frozen=True, repr=False)
class Sources:
    """What is read for each series: its folder if that holds nothing else, or else exactly its files.

    A file whose header cannot be read belongs to the series that it names, or else to every series of its
    patient in its folder, which then cannot be read either: nobody knows which of them lacks a slice. Where
    it names no patient and its folder holds several, it is a case of its own, which is refused and told, and
    the patients' series are read. `damaged_series` are the files of such cases and of series without any
    other file, by a name that is the hospital's own.
    """

    images_below: Mapping[Path, int]  # of each folder, at any depth
    damaged_of_series: Mapping[str, tuple[Path, ...]]
    damaged_of_folder: Mapping[tuple[Path, str], tuple[Path, ...]]  # by folder and patient
    damaged_series: Mapping[str, tuple[Path, ...]]

    @classmethod
    def of(cls, survey: Survey, files: DicomFiles) -> Sources:
        """Return the sources of a folder's series."""
        images_below: Counter[Path] = Counter()
        for file in survey.files:
            if file.format in IMAGE_FORMATS:
                images_below.update([survey.folder.joinpath(*file.parts[:n]) for n in range(len(file.parts))])
        patients: dict[Path, set[str]] = defaultdict(set)
        for (patient, _), members in files.series.items():
            for member in members:
                patients[member.path.parent].add(patient)
        uids = {one.series for members in files.series.values() for one in members}
        of_series: dict[str, list[Path]] = defaultdict(list)
        of_folder: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        alone: dict[str, list[Path]] = defaultdict(list)
        for one in files.damaged:
            if one.non_volume:
                continue
            if one.series in uids:
                of_series[one.series].append(one.path)
            elif not one.series and (owner := _owner(one, patients[one.path.parent])) is not None:
                of_folder[one.path.parent, owner].append(one.path)
            else:
                where = one.path.parent.relative_to(survey.folder).as_posix()
                alone[f"{where} {one.series}".strip()].append(one.path)
        return cls(images_below, _tuples(of_series), _tuples(of_folder), _tuples(alone))

    def of_series(self, patient: str, members: Sequence[ListingHeader]) -> ImageSource:
        """Return what to read for one series of a patient."""
        if len(members) == 1 and members[0].is_echo:
            return Echo(members[0].path, members[0].echo_ms)
        own = [member.path for member in members]
        folders = sorted({path.parent for path in own})
        own += self.damaged_of_series.get(members[0].series, ())
        own += [path for folder in folders for path in self.damaged_of_folder.get((folder, patient), ())]
        if len(own) == 1:
            return own[0]
        if len(folders) == 1 and self.images_below[folders[0]] == len(own):
            return folders[0]
        return tuple(sorted(own))


def _owner(damaged: DamagedFile, patients: set[str]) -> str | None:
    """Return the patient in a folder whose damaged file this is, or None if nobody can know."""
    if damaged.patient in patients and damaged.patient:
        return damaged.patient
    return next(iter(patients)) if len(patients) == 1 and not damaged.patient else None


def _tuples(paths: Mapping[Any, list[Path]]) -> dict[Any, tuple[Path, ...]]:
    return {key: tuple(sorted(group)) for key, group in paths.items()}
