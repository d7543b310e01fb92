"""A hospital's cases, listed even if the folder is broken: what the index refuses becomes a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medfed.data.case import Case
from medfed.data.csv_table import QUOTE, check_columns, read_rows
from medfed.data.index import index_folder, note_on_links, with_token
from medfed.data.layouts import CaseListing, Layout, ListedCase, Survey, choose_layout
from medfed.data.layouts._files import is_image, stem
from medfed.data.layouts._header_patients import with_header_patients
from medfed.data.layouts.cases_csv import FILE_NAME, REQUIRED_COLUMNS, CasesCsv, patient_notes, read_row
from medfed.data.left_out import left_out_files
from medfed.data.patients import classes_note
from medfed.data.preflight.issues import Finding
from medfed.data.splits import UNASSIGNED, Fold, assign_splits, case_token
from medfed.errors import DataError, ImageError


@dataclass(frozen=True, slots=True, repr=False)
class Listing:
    """The cases of a folder, the printable name of each, and what is wrong with the list."""

    layout: str
    cases: tuple[Case, ...]
    names: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    class_names: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    left_out_files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()  # what the folder calls the images of a case, in order
    structures: tuple[str, ...] = ()  # what the numbers of the labels mean, as they were read


def list_folder(
    folder: Path,
    key: bytes,
    fractions: Sequence[float],
    layout: Layout | None = None,
    fold: Fold | None = None,
) -> Listing:
    """Return what a folder holds; whatever the index would raise becomes a finding instead."""
    if (layout is None or isinstance(layout, CasesCsv)) and (folder / FILE_NAME).is_file():
        return _list_table(folder, key, fractions, fold)
    try:
        index = index_folder(folder, site_secret=key, fractions=fractions, fold=fold, layout=layout)
    except DataError as error:
        return _fallback_listing(folder, key, fractions, str(error))
    notes = tuple(Finding("note", "", note) for note in index.notes)
    names = _numbered(index.cases)
    return Listing(
        index.layout,
        index.cases,
        names,
        notes,
        index.class_names,
        index.left_out,
        index.left_out_files,
        index.channels,
    )


def _numbered(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(f"case {number} ({case.token})" for number, case in enumerate(cases, start=1))


def _with_splits(
    cases: Sequence[Case], key: bytes, fractions: Sequence[float], fold: Fold | None = None
) -> tuple[Case, ...]:
    if not cases:
        return ()
    try:
        return assign_splits(cases, key, fractions, fold)
    except DataError:  # too few patients for the folds, which the index says
        return assign_splits(cases, key, fractions)


# ---------------------------------------------------------------------------------------------- cases.csv


def _list_table(folder: Path, key: bytes, fractions: Sequence[float], fold: Fold | None) -> Listing:
    try:
        notes: list[str] = []
        rows = read_rows(folder / FILE_NAME, FILE_NAME, any_length=True, notes=notes)
        columns = next(rows)[1]
        check_columns(columns, REQUIRED_COLUMNS, FILE_NAME)
    except DataError as error:
        listing = _fallback_listing(folder, key, fractions, str(error))
        return replace(listing, layout="cases.csv, which can't be read")
    listed: list[ListedCase] = []
    names: list[str] = []
    findings: list[Finding] = []
    row_of_id: dict[str, int] = {}
    for number, cells in rows:
        if len(cells) != len(columns):
            detail = f"it has {len(cells)} cells, the heading has {len(columns)}; {QUOTE}"
            findings.append(Finding("row", f"row {number}", detail))
            continue
        case, errors = read_row(folder, dict(zip(columns, cells, strict=True)), number, row_of_id)
        listed.append(case)
        names.append(f"row {number} ({case_token(key, case.id)})")
        # A missing file is found when the case is read.
        wrong = [error for error in errors if not isinstance(error, ImageError)]
        findings += [Finding("row", names[-1], str(error)) for error in wrong]
    survey = Survey.of(folder)
    known, told = with_header_patients(listed, (*notes, *patient_notes(columns)), survey)
    cases = tuple(with_token(case, key) for case in known)
    told = (*told, *classes_note(cases), *note_on_links(survey.outside))
    findings += [Finding("note", "", note) for note in told]
    findings += _patients_in_two_splits(cases, names)
    read = CaseListing(FILE_NAME, (), read=(folder / FILE_NAME,))
    files = left_out_files(survey, read, cases)
    counts = {**{reason: len(paths) for reason, paths in files.items()}, **survey.unreadable}
    with_splits = _with_splits(cases, key, fractions, fold)
    return Listing(FILE_NAME, with_splits, tuple(names), tuple(findings), (), counts, files)


def _patients_in_two_splits(cases: Sequence[Case], names: Sequence[str]) -> list[Finding]:
    first: dict[str, int] = {}
    findings = []
    for number, case in enumerate(cases):
        if case.split == UNASSIGNED:
            continue
        earlier = first.setdefault(case.patient, number)
        if cases[earlier].split != case.split:
            detail = f"in {case.split}, and {names[earlier]} of the same patient in {cases[earlier].split}"
            findings.append(Finding("patient_in_two_splits", names[number], detail))
    return findings


# ---------------------------------------------------------------------------------------------- anything else


def _fallback_listing(folder: Path, key: bytes, fractions: Sequence[float], refusal: str) -> Listing:
    """Return each image below the folder as a case, for a folder that training would refuse."""
    survey = Survey.of(folder)
    cases = []
    for image, label in _images_below(survey):
        identity = str(image.relative_to(folder))
        cases.append(Case(identity, identity, case_token(key, identity), (image,), label, split=UNASSIGNED))
    listed = _with_splits(cases, key, fractions)
    findings = (Finding("folder", "", refusal),)
    return Listing(_title(survey), listed, _numbered(listed), findings)


def _title(survey: Survey) -> str:
    try:
        return f"{choose_layout(survey).title}, with mistakes"
    except DataError:
        return "no layout that medfed is certain of"


def _images_below(survey: Survey) -> list[tuple[Path, Path | None]]:
    """Return image files with the label of the same name, then folders of DICOM files."""
    images = [file.path for file in survey.files if is_image(file)]
    labels = {stem(path): path for path in images if "label" in path.parent.name.lower()}
    pairs = [
        (path, labels.get(stem(path)) or labels.get(stem(path).removesuffix("_0000")))
        for path in images
        if path not in labels.values()
    ]
    folders = sorted({file.path.parent for file in survey.files if file.format == "dicom"})
    return [*pairs, *((path, None) for path in folders)]
