"""A hospital's folder as an index: its cases, their patients, and the split that each is in.

`index_folder` recognises the layout of a folder (see `layouts/`), turns the hospital's case ids into tokens,
and assigns splits. It reads names and tables, never voxels, and writes nothing into the hospital's folder.
An index stays in the hospital: what may be printed is a case's token, not its id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from medfed.data.case import Case
from medfed.data.case_rows import CaseRows
from medfed.data.identifiers import patient_key
from medfed.data.layouts import CaseError, CaseListing, Layout, ListedCase, Survey, choose_layout
from medfed.data.layouts._header_patients import with_header_patients
from medfed.data.left_out import describe_left_out, left_out_files
from medfed.data.patients import classes_note
from medfed.data.splits import (
    ASIDE,
    DEFAULT_FRACTIONS,
    SPLITS,
    Fold,
    assign_splits,
    case_token,
    check_secret,
)
from medfed.errors import DataError

LabelsBy = Literal["names", "stated", "numbers", ""]


@dataclass(frozen=True, repr=False)
class Index:
    """A hospital's cases, and what the folder was taken for.

    `class_names` names the targets in order, if the layout knows them; `label_names` is what the folder says
    the numbers in its labels mean; `channels` names the images of each case in order, if the layout does.
    `notes` are lines that may be printed: they name tokens, counts and columns only. `left_out_files` are
    the files that no case uses, by a reason that may be printed; `unreadable` counts what could not be
    looked into. `rows` are those of the table beside the images, if the study asks for one (`case_table.py`).
    `labels_by` says what decides the classes in its labels: names in its files, the hospital's word for their
    numbers (`stated`), or numbers that nothing names; '' without labels, and where numbers without names can
    mean only the study's one class.
    """

    folder: Path
    layout: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    channels: tuple[str, ...] = ()
    left_out_files: Mapping[str, tuple[Path, ...]] = field(default_factory=lambda: MappingProxyType({}))
    unreadable: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    rows: CaseRows | None = None
    labels_by: LabelsBy = ""

    def __repr__(self) -> str:
        return f"Index({self.layout!r}, {len(self.cases)} cases)"

    def split(self, name: str) -> tuple[Case, ...]:
        """Return the cases of one split, in the index's order."""
        return tuple(case for case in self.cases if case.split == name)

    @property
    def patients(self) -> int:
        """How many patients the cases belong to."""
        return len({case.patient for case in self.cases})

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many files no case uses, by a reason that may be printed, such as "empty files ...": 2."""
        counts = {reason: len(files) for reason, files in self.left_out_files.items()}
        return {**counts, **self.unreadable}

    def describe(self) -> str:
        """Return one line: what the folder was taken for and what is in it, without a name or a path."""
        counts = Counter(case.split for case in self.cases)
        splits = ", ".join(f"{counts[name]} {name}" for name in SPLITS)
        splits += f", {counts[ASIDE]} set aside" if counts[ASIDE] else ""
        labels = sum(case.label is not None or bool(case.masks) for case in self.cases)
        targets = sum(case.target is not None for case in self.cases)
        spare = f"; left out: {describe_left_out(self.left_out)}" if self.left_out else ""
        # A data module of one's own may read what is learned only as it loads a case.
        learned = f", {labels} with a label, {targets} with a target" if labels or targets else ""
        return (
            f"{self.layout}: {len(self.cases)} cases of {self.patients} patients ({splits}){learned}{spare}"
        )


def index_folder(
    folder: str | Path,
    *,
    site_secret: bytes,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    fold: Fold | None = None,
    layout: Layout | None = None,
) -> Index:
    """Return the index of a hospital's folder, checked.

    Args:
        folder: a folder in one of the layouts of `layouts/`, such as one with `cases.csv`.
        site_secret: the site's key. It salts the tokens of cases and decides splits that the folder does not
            give; the caller keeps it outside this folder. The same key always gives the same splits.
        fractions: the share of patients in train, val and test, for folders that give no split.
        fold: which patients are tested in a cross-validation; None without one.
        layout: how the cases lie; if None, the only layout for which the folder speaks.

    Raises:
        DataError: for a folder that fits no layout or several, a folder without cases, a table that lacks a
            column, a duplicate case, a patient in two splits, an unknown split, an empty target.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            "the site's data folder is not a folder; set `data` in the site file to the folder with the cases"
        )
    check_secret(site_secret)
    survey = Survey.of(folder)
    listing = _list_cases(survey, choose_layout(survey, layout), site_secret)
    listed, notes = with_header_patients(listing.cases, listing.notes, survey)
    cases = assign_splits([with_token(case, site_secret) for case in listed], site_secret, fractions, fold)
    if not cases:
        spare = left_out_files(survey, listing, ())
        told = describe_left_out({reason: len(files) for reason, files in spare.items()})
        raise DataError(
            f"the site's data folder was taken for {listing.title} and holds no case ({survey.describe()}"
            f"{f'; left out: {told}' if told else ''}); add cases, name another folder, or say with `layout`"
            " how the cases lie (cases.csv, a pattern and class folders name images that are no volumes)"
        )
    check_cases(cases)
    return Index(
        folder,
        listing.title,
        cases,
        (*notes, *classes_note(cases), *note_on_links(survey.outside)),
        listing.class_names,
        listing.label_names,
        listing.channels,
        left_out_files(survey, listing, cases),
        survey.unreadable,
    )


def _list_cases(survey: Survey, layout: Layout, site_secret: bytes) -> CaseListing:
    try:
        return layout.read(survey)
    except CaseError as error:
        case = f"case {case_token(site_secret, error.case_id)}"
        raise error.kind(f"{f'{error.where} ({case})' if error.where else case}: {error}") from None


def note_on_links(count: int) -> tuple[str, ...]:
    """Return the note that is due where links lead out of the data folder."""
    if not count:
        return ()
    links = f"{count} links lead" if count > 1 else "1 link leads"
    return (f"{links} out of the data folder; make sure that what lies there is this hospital's own",)


def with_token(case: ListedCase, site_secret: bytes) -> Case:
    """Return a listed case with its token."""
    own = {**vars(case), "patient": patient_key(case.patient)}
    return Case(token=case_token(site_secret, case.id), **own)


def check_cases(cases: Sequence[Case]) -> None:
    """Raise if two cases share an id, or a patient is in two splits.

    A file that is missing costs its case and not the folder: the case is refused when it is read.

    Raises:
        DataError: naming the cases by token.
    """
    seen: set[str] = set()
    first_of: dict[str, Case] = {}
    for case in cases:
        if case.id in seen:
            raise DataError(f"case {case.token} is listed twice; every case needs an id of its own")
        seen.add(case.id)
        first = first_of.setdefault(case.patient, case)
        if first.split != case.split:
            raise DataError(
                f"one patient is in two splits: case {first.token} in {first.split}, case {case.token} in "
                f"{case.split}; all of a patient's cases belong in one split, or the model is scored on "
                "patients that it has trained on"
            )
