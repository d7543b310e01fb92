"""The contract of a layout: it is recognised, lists its cases, and prints nothing that names a patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from medfed.data.case import first_path, paths_of
from medfed.data.index import Index, check_cases, with_token
from medfed.data.layouts import Layout, ListedCase, Survey, choose_layout, layouts
from medfed.data.left_out import left_out_files
from medfed.data.splits import SPLITS, UNASSIGNED
from medfed.testing._contract import Contract, its_docstring_begins_with_a_sentence

# Every name that the hospital chose in an example's folder holds this; nothing that is printed may hold it.
PATIENT = "Meier"


class ExpectedCase(NamedTuple):
    """A listed case by value, with the names of its files."""

    id: str
    patient: str
    image: tuple[str, ...]
    label: str | None = None
    target: int | None = None
    split: str = UNASSIGNED


@dataclass(frozen=True)
class LayoutExample:
    """A layout, a small folder of it, and what listing that must give.

    write: fills an empty folder, in which every file, folder and id is named after PATIENT.  given: whether
    the layout must be given, because a folder never speaks for it.  masks: the names of each case's masks, in
    order, where the layout has one per structure.  left_out: how many files no case uses, by reason.
    """

    layout: Layout
    write: Callable[[Path], None]
    cases: Sequence[ExpectedCase]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    masks: tuple[tuple[str, ...], ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    given: bool = False


check_layout: Contract[LayoutExample] = Contract("layout")


@contextmanager
def written(example: LayoutExample) -> Iterator[Path]:
    """Write the example into a folder named after the patient, for the time of the block."""
    with TemporaryDirectory() as parent:
        folder = Path(parent) / PATIENT
        folder.mkdir()
        example.write(folder)
        yield folder


def by_value(case: ListedCase) -> ExpectedCase:
    label = case.label.name if case.label is not None else None
    files = tuple("" if source == () else first_path(source).name for source in case.image)
    return ExpectedCase(case.id, case.patient, files, label, case.target, case.split)


@check_layout.check
def it_says_what_it_is(example: LayoutExample) -> None:
    assert example.layout.title
    assert example.layout.needs
    its_docstring_begins_with_a_sentence(example.layout)


@check_layout.check
def its_folder_speaks_for_it_alone(example: LayoutExample) -> None:
    with written(example) as folder:
        survey = Survey.of(folder)
        evidence = example.layout.evidence(survey)
        others = [layout for layout in layouts() if type(layout) is not type(example.layout)]
        speaking = [one for one in others if one.evidence(survey) and one.rank >= example.layout.rank]
        if example.given:
            assert evidence is None
        else:
            assert evidence, "it has no evidence in its own folder"
            assert PATIENT.lower() not in evidence.lower()
            assert not speaking, f"{speaking[0]!r} takes its folder, too; name evidence that others lack"
        assert choose_layout(survey, example.layout) == example.layout


@check_layout.check
def no_other_folder_speaks_for_it(example: LayoutExample) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        assert example.layout.evidence(Survey.of(folder)) is None
        (folder / "notes.txt").write_text("nothing")
        (folder / f"{PATIENT}.nii.gz").touch()
        assert example.layout.evidence(Survey.of(folder)) is None


@check_layout.check
def its_cases_notes_and_classes_are_those_expected(example: LayoutExample) -> None:
    with written(example) as folder:
        survey = Survey.of(folder)
        listing = example.layout.read(survey)
        cases = [with_token(case, bytes(32)) for case in listing.cases]
        left_out = {reason: len(files) for reason, files in left_out_files(survey, listing, cases).items()}
    assert [by_value(case) for case in listing.cases] == list(example.cases)
    assert listing.notes == example.notes
    assert listing.class_names == example.class_names
    assert listing.label_names == example.label_names
    assert listing.channels == example.channels
    masks = tuple(tuple(name for name, _ in case.masks) for case in listing.cases)
    assert masks == (example.masks or ((),) * len(masks))
    assert left_out == example.left_out


@check_layout.check
def every_split_is_known_and_every_file_exists(example: LayoutExample) -> None:
    with written(example) as folder:
        for case in example.layout.read(Survey.of(folder)).cases:
            assert case.split in (*SPLITS, UNASSIGNED), case.split
            assert all(path.exists() for source in case.image for path in paths_of(source))
            assert case.label is None or case.label.exists()


@check_layout.check
def a_case_that_lacks_a_file_does_not_refuse_the_others(example: LayoutExample) -> None:
    """Take each file of each case away: the others are listed as before, and the case never as whole."""
    with written(example) as folder:
        away = folder.parent / "away"
        cases = example.layout.read(Survey.of(folder)).cases
        for case in cases if len(cases) > 1 else ():
            for path in _files(case):
                path.rename(away)
                listed = {one.id: one for one in example.layout.read(Survey.of(folder)).cases}
                away.rename(path)
                for other in cases:
                    if path not in _files(other):
                        assert listed.get(other.id) == other, "another case is listed otherwise"
                left = listed.get(case.id)
                assert left is None or _is_known_to_lack(left, path, case), "the case is listed as whole"


def _files(case: ListedCase) -> tuple[Path, ...]:
    labels = (*(() if case.label is None else (case.label,)), *(path for _, path in case.masks))
    return (*(path for source in case.image for path in paths_of(source)), *labels)


def _is_known_to_lack(left: ListedCase, path: Path, whole: ListedCase) -> bool:
    """Whether a case is refused when it is read, or has lost no more than its label."""
    if left.fault is not None or () in left.image or path in _files(left):
        return True
    return left.image == whole.image and (left.label, left.masks) != (whole.label, whole.masks)


@check_layout.check
def nothing_that_is_printed_names_a_patient(example: LayoutExample) -> None:
    secret = b"a site's secret of some length"
    with written(example) as folder:
        survey = Survey.of(folder)
        listing = example.layout.read(survey)
        assert all(PATIENT in case.id for case in listing.cases), f"the example's ids do not hold {PATIENT}"
        cases = tuple(with_token(case, secret) for case in listing.cases)
        check_cases(cases)
        left_out = left_out_files(survey, listing, cases)
        index = Index(folder, listing.title, cases, listing.notes, left_out_files=left_out)
    printed = [repr(listing), str(listing.cases[0]), repr(index), index.describe(), repr(index.cases)]
    printed += [listing.title, *listing.notes]
    assert PATIENT.lower() not in " ".join(printed).lower()


@check_layout.check
def reading_twice_gives_the_same_and_writes_nothing(example: LayoutExample) -> None:
    with written(example) as folder:
        before = sorted(folder.rglob("*"))
        first, second = (example.layout.read(Survey.of(folder)) for _ in range(2))
        assert first == second
        assert sorted(folder.rglob("*")) == before
