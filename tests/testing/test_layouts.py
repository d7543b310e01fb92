"""The contract of a layout names what naive ones break."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from contract import broken

from medfed.data.layouts import CaseListing, Layout, ListedCase, Survey
from medfed.testing import PATIENT, ExpectedCase, LayoutExample, check_layout


class Visits(Layout, frozen=True, tag="visits"):
    """A folder per patient below `visits/`, a NIfTI file per visit."""

    title: ClassVar[str] = "visits"
    needs: ClassVar[str] = "visits/<patient>/<visit>.nii.gz"
    order: ClassVar[int] = 5

    def evidence(self, survey: Survey) -> str | None:
        return "a folder 'visits'" if survey.below("visits") else None

    def read(self, survey: Survey) -> CaseListing:
        files = [file.path for file in survey.below("visits")]
        return CaseListing(self.title, tuple(self.case(file) for file in files))

    def case(self, file: Path) -> ListedCase:
        patient = file.parent.name
        return ListedCase(f"{patient}/{file.name[:-7]}", patient, (file,))


class Silent(Visits, frozen=True, tag="silent"):
    title: ClassVar[str] = ""


class Ambiguous(Visits, frozen=True, tag="ambiguous"):
    """Its folder speaks for a built-in layout, too."""


class Eager(Visits, frozen=True, tag="eager"):
    """Recognises every folder there is."""

    def evidence(self, survey: Survey) -> str | None:
        return "it is a folder"


class Talkative(Visits, frozen=True, tag="talkative"):
    """Notes which files it has found."""

    def read(self, survey: Survey) -> CaseListing:
        listing = super().read(survey)
        return replace(listing, notes=tuple(f"found {case.id}" for case in listing.cases))


class Misplacing(Visits, frozen=True, tag="misplacing"):
    """Assigns a split by a name of its own and lists files that are not there."""

    def case(self, file: Path) -> ListedCase:
        return replace(super().case(file), split="training", label=file.with_suffix(".mask"))


class Writing(Visits, frozen=True, tag="writing"):
    """Keeps a cache in the hospital's folder."""

    def read(self, survey: Survey) -> CaseListing:
        (survey.folder / "cache.json").touch()
        return super().read(survey)


class Positional(Visits, frozen=True, tag="positional"):
    """Names each case by its place in the list, so that a missing one renames those after it."""

    def read(self, survey: Survey) -> CaseListing:
        listing = super().read(survey)
        cases = (replace(case, id=f"{PATIENT}-{place}") for place, case in enumerate(listing.cases))
        return replace(listing, cases=tuple(cases))


def write(folder: Path) -> None:
    (folder / "visits" / PATIENT).mkdir(parents=True)
    (folder / "visits" / PATIENT / f"{PATIENT}.nii.gz").touch()


def write_pairs_too(folder: Path) -> None:
    write(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir()
        (folder / name / f"{PATIENT}.nii.gz").touch()


def write_two(folder: Path) -> None:
    write(folder)
    (folder / "visits" / PATIENT / f"{PATIENT}2.nii.gz").touch()


def example_of_two(layout: Layout) -> LayoutExample:
    ids = (f"{PATIENT}-0", f"{PATIENT}-1")
    if not isinstance(layout, Positional):
        ids = (f"{PATIENT}/{PATIENT}", f"{PATIENT}/{PATIENT}2")
    files = (f"{PATIENT}.nii.gz", f"{PATIENT}2.nii.gz")
    cases = [ExpectedCase(id, PATIENT, (file,)) for id, file in zip(ids, files, strict=True)]
    return LayoutExample(layout, write_two, cases)


def example(layout: Layout) -> LayoutExample:
    if isinstance(layout, Positional):
        return example_of_two(layout)
    write_example = write_pairs_too if isinstance(layout, Ambiguous) else write
    case = ExpectedCase(f"{PATIENT}/{PATIENT}", PATIENT, (f"{PATIENT}.nii.gz",))
    return LayoutExample(layout, write_example, [case])


VALUES, PRINTED = "its_cases_notes_and_classes_are_those_expected", "nothing_that_is_printed_names_a_patient"
WRONG = {
    Silent: {"it_says_what_it_is"},
    Ambiguous: {"its_folder_speaks_for_it_alone", VALUES},
    Eager: {"no_other_folder_speaks_for_it"},
    Talkative: {VALUES, PRINTED},
    Misplacing: {VALUES, "every_split_is_known_and_every_file_exists"},
    Positional: {"a_case_that_lacks_a_file_does_not_refuse_the_others"},
    Writing: {"reading_twice_gives_the_same_and_writes_nothing"},
}


def test_a_right_one_passes() -> None:
    check_layout(example(Visits()))
    check_layout(example_of_two(Visits()))


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_one_is_named(kind: type[Layout]) -> None:
    assert broken(check_layout, example(kind())) == WRONG[kind]


def test_each_check_is_broken_by_one_of_them() -> None:
    assert set().union(*WRONG.values()) == set(check_layout.checks)
