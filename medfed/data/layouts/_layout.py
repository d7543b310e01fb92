"""The contract of a layout, and the records it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from medfed.data.case import Fault, ImageSource
from medfed.data.layouts._survey import Survey
from medfed.data.splits import UNASSIGNED
from medfed.errors import DataError
from medfed.registry import Kind

# A note for layouts that cannot tell two visits of one patient from two patients.
NO_PATIENTS = "the layout names no patients: each case counts as a patient of its own"


@dataclass(frozen=True, repr=False)
class ListedCase:
    """A case as a layout finds it, with the hospital's own id and patient; no token yet.

    `image` holds one source per channel: a path, or the files of one series. `masks` holds one mask file per
    named structure, beside or instead of `label`. `split` is UNASSIGNED unless the folder states it.

    A case that cannot be read as the folder is (a channel without a file, two files for one) does not cost
    the others: it is listed, with () for each channel that has no file, or with a `fault`, and is refused
    when it is read, under the site's policy on unreadable cases.
    """

    id: str
    patient: str
    image: tuple[ImageSource, ...]
    label: Path | None = None
    target: int | None = None
    split: str = UNASSIGNED
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    masks: tuple[tuple[str, Path], ...] = ()
    fault: Fault | None = None

    def __repr__(self) -> str:
        # Everything else names the patient.
        return f"ListedCase({len(self.image)} image paths, split={self.split!r})"


@dataclass(frozen=True, repr=False)
class CaseListing:
    """The cases of a folder, before splits and checks.

    title: what the folder was taken for.  notes: lines that may be printed; they hold counts and columns
    only.  class_names: of the targets, in order.  label_names: what the folder itself says the numbers in
    its labels mean.  channels: the names of the images of each case, in order, where the layout tells
    channels by name.  read: files that the layout has read itself, such as a table.  left_out: files that
    the layout knows and does not use, by a reason that may be printed; `index.py` adds all others.
    """

    title: str
    cases: tuple[ListedCase, ...]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    channels: tuple[str, ...] = ()
    read: tuple[Path, ...] = ()
    left_out: Mapping[str, tuple[Path, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def __repr__(self) -> str:
        return f"CaseListing({self.title!r}, {len(self.cases)} cases)"


class CaseError(DataError):
    """A case that cannot be listed; `index` names it by its token and raises an error of `kind`.

    `case_id` is the hospital's own id: it is an attribute and no part of the message. `where` names a place
    that may be printed, such as a row of a table.
    """

    def __init__(
        self, case_id: str, message: str, kind: type[DataError] = DataError, where: str = ""
    ) -> None:
        super().__init__(message)
        self.case_id = case_id
        self.kind = kind
        self.where = where


class Layout(Kind, frozen=True):
    """How cases lie in a folder.

    title: what a person calls the layout.  needs: what the folder must hold to be recognised, for a person
    whose folder was not.  order: in which layouts are listed.  rank: which evidence outranks which: 2 for the
    hospital's own list of cases, 1 for a file that says what the folder is, 0 for names and contents.
    """

    folder: ClassVar[str] = "layouts"
    title: ClassVar[str]
    needs: ClassVar[str]
    order: ClassVar[int]
    rank: ClassVar[int] = 0

    def evidence(self, survey: Survey) -> str | None:
        """Return what in the folder speaks for this layout, without a name of the hospital, or None.

        Evidence is what other layouts do not have: a layout that takes any folder would be taken for it.
        """
        raise NotImplementedError

    def read(self, survey: Survey) -> CaseListing:
        """Return the cases of a folder of this layout.

        Messages and notes hold no name, path or cell of the hospital. A single case that lacks a file or has
        one too many is listed (see `ListedCase`) and does not refuse the folder.

        Raises:
            CaseError: for a row of a table that says something wrong of its case.
            DataError: for the folder as a whole.
        """
        raise NotImplementedError
