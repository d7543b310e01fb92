"""Whose cases are, by DICOM headers, where neither the folder nor its table says so.

A class folder of radiographs, or a cases.csv without patients, names files only; two films of one patient
would be in training and in test. Patients are then told apart as in a tree of DICOM series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medfed.data.case import paths_of
from medfed.data.dicom.listing_header import ListingHeader, read_listing_header
from medfed.data.dicom.patients import Key, group_by_patient
from medfed.data.layouts._layout import NO_PATIENTS, ListedCase
from medfed.data.layouts._survey import File, Survey, file_format

NO_PATIENT_COLUMN = "cases.csv has no column 'patient': each case counts as a patient of its own"

# Notes that hold only if the headers do not say whose the cases are.
_SUPERSEDED = frozenset({NO_PATIENTS, NO_PATIENT_COLUMN})


def with_header_patients(
    cases: Sequence[ListedCase], notes: Sequence[str], survey: Survey
) -> tuple[tuple[ListedCase, ...], tuple[str, ...]]:
    """Return the cases with the patients that their headers name, and the notes as they then are.

    Only a case that counts as a patient of its own is asked: what the hospital says goes before. Patients are
    joined by it and never parted, and one that is called as a patient of the layout is that patient.
    """
    by_folder = _dicom_by_folder(survey)
    series: dict[Key, list[ListingHeader]] = {}
    for case in cases:
        if case.patient == case.id and (headers := _headers(case, by_folder)):
            series[("", case.id)] = headers
    if not series:
        return tuple(cases), tuple(notes)
    found, own_notes = group_by_patient(series)
    patients = {identity: patient for (_, identity), patient in found.items()}
    own = sum(case.patient == case.id and case.id not in patients for case in cases)
    count = len(set(patients.values()))
    told = f"{len(patients)} cases are of {count} patients by their DICOM headers: nothing else names them"
    kept = [note for note in notes if note not in _SUPERSEDED]
    if own:
        told += f"; {own} other cases count as patients of their own"
    joined = tuple(replace(case, patient=patients.get(case.patient, case.patient)) for case in cases)
    return joined, (*kept, told, *own_notes)


def _dicom_by_folder(survey: Survey) -> Mapping[Path, File]:
    """Return a DICOM file of each folder that holds any, at any depth."""
    found: dict[Path, File] = {}
    for file in survey.files:
        if file.format == "dicom":
            for folder in file.path.parents[: len(file.parts)]:
                found.setdefault(folder, file)
    return found


def _headers(case: ListedCase, by_folder: Mapping[Path, File]) -> list[ListingHeader]:
    """Return the header of one file per channel; none for a channel that is no DICOM or is damaged."""
    headers = []
    for source in case.image:
        for path in paths_of(source)[:1]:
            file = by_folder[path].path if path in by_folder else path
            header = read_listing_header(file) if file_format(file) == "dicom" else None
            if isinstance(header, ListingHeader):
                headers.append(header)
    return headers
