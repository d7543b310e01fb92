"""Patients of DICOM cases whose layout names none: the files' own headers say which cases share one.

A folder of a class, a pattern or a table without a column of patients counts each case as a patient of its
own. Two views or series of one examination would then be in training and in test, though PatientID or the
study in their headers says whose they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from medfed.data.case import Case, ImageSource, paths_of
from medfed.data.dicom.listing_header import ListingHeader, read_listing_header
from medfed.data.dicom.patients import group_by_patient
from medfed.data.layouts._layout import NO_PATIENT_COLUMN, NO_PATIENTS, ListedCase
from medfed.data.layouts._survey import Format, Survey, file_format

UNNAMED = frozenset((NO_PATIENTS, NO_PATIENT_COLUMN))
BY_HEADERS = (
    "the layout names no patients: cases whose DICOM headers share PatientID or study are one patient's"
)
OTHERS = "each case without such a header counts as a patient of its own"

AnyCase = TypeVar("AnyCase", ListedCase, Case)


def patients_by_header(
    survey: Survey, cases: Sequence[AnyCase], notes: Sequence[str]
) -> tuple[tuple[AnyCase, ...], tuple[str, ...]]:
    """Return cases and notes, with DICOM cases' patients by their headers where nothing else names them.

    A note of `UNNAMED` says that nothing does; without it, or without DICOM, nothing changes.
    """
    if UNNAMED.isdisjoint(notes):
        return tuple(cases), tuple(notes)
    formats = {file.path: file.format for file in survey.files}
    headers = {
        (header.patient, case.id): [header]
        for case in cases
        if (header := _header(case.image, formats)) is not None
    }
    if not headers:
        return tuple(cases), tuple(notes)
    grouped = group_by_patient(headers)
    of_case = {case_id: patient for (_, case_id), patient in grouped[0].items()}
    joined = tuple(replace(case, patient=of_case.get(case.id, case.patient)) for case in cases)
    line = BY_HEADERS if len(of_case) == len(cases) else f"{BY_HEADERS}; {OTHERS}"
    kept = [line if note in UNNAMED else note for note in notes]
    return joined, (*kept, *grouped[1])


def _header(image: Sequence[ImageSource], formats: dict[Path, Format]) -> ListingHeader | None:
    """Return the header of the first DICOM file of a case, None if it has none that can be read."""
    for source in image:
        for path in paths_of(source):
            for file in _files(path):
                if (formats.get(file) or file_format(file)) == "dicom":
                    header = read_listing_header(file)
                    return header if isinstance(header, ListingHeader) else None
    return None


def _files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the files below a folder in order."""
    if not path.is_dir():
        yield path
        return
    for parent, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))
