"""The contract of a layout: it is recognised, lists its cases, and prints nothing that names a patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from medfed.data.case import first_path, paths_of
from medfed.data.index import Index, check_cases, with_token
from medfed.data.layouts import Layout, ListedCase, layouts
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

    write: fills an empty folder, in which every file, folder and id is named after PATIENT.
    """

    layout: Layout
    write: Callable[[Path], None]
    cases: Sequence[ExpectedCase]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


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
    files = tuple(first_path(source).name for source in case.image)
    return ExpectedCase(case.id, case.patient, files, label, case.target, case.split)


@check_layout.check
def it_says_what_it_is(example: LayoutExample) -> None:
    assert example.layout.title
    assert example.layout.evidence
    its_docstring_begins_with_a_sentence(example.layout)


@check_layout.check
def its_folder_is_recognised_by_it_before_any_other(example: LayoutExample) -> None:
    with written(example) as folder:
        assert example.layout.recognises(folder)
        others = [layout for layout in layouts() if layout != example.layout and layout.recognises(folder)]
        first = min((layout.order for layout in others), default=example.layout.order + 1)
        assert example.layout.order < first, f"{others[0]!r} comes first; a lower `order` is tried before"


@check_layout.check
def an_empty_folder_is_not_recognised(example: LayoutExample) -> None:
    with TemporaryDirectory() as folder:
        assert not example.layout.recognises(Path(folder))


@check_layout.check
def its_cases_notes_and_classes_are_those_expected(example: LayoutExample) -> None:
    with written(example) as folder:
        listing = example.layout.read(folder)
    assert [by_value(case) for case in listing.cases] == list(example.cases)
    assert listing.notes == example.notes
    assert listing.class_names == example.class_names


@check_layout.check
def every_split_is_known_and_every_file_exists(example: LayoutExample) -> None:
    with written(example) as folder:
        for case in example.layout.read(folder).cases:
            assert case.split in (*SPLITS, UNASSIGNED), case.split
            assert all(path.exists() for source in case.image for path in paths_of(source))
            assert case.label is None or case.label.exists()


@check_layout.check
def nothing_that_is_printed_names_a_patient(example: LayoutExample) -> None:
    secret = b"a site's secret of some length"
    with written(example) as folder:
        listing = example.layout.read(folder)
        assert all(PATIENT in case.id for case in listing.cases), f"the example's ids do not hold {PATIENT}"
        cases = tuple(with_token(case, secret) for case in listing.cases)
        check_cases(cases)
        index = Index(folder, listing.title, cases, listing.notes, listing.class_names)
    printed = [repr(listing), str(listing.cases[0]), repr(index), index.describe(), repr(index.cases)]
    printed += [listing.title, *listing.notes]
    assert PATIENT.lower() not in " ".join(printed).lower()


@check_layout.check
def reading_twice_gives_the_same_and_writes_nothing(example: LayoutExample) -> None:
    with written(example) as folder:
        before = sorted(folder.rglob("*"))
        assert example.layout.read(folder) == example.layout.read(folder)
        assert sorted(folder.rglob("*")) == before
