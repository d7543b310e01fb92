"""The records of a layout name no patient where they are printed, and an error keeps the case for `index`."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from medfed.data.index import index_folder
from medfed.data.layouts._layout import CaseError, CaseListing, Layout, ListedCase
from medfed.data.layouts._survey import Survey
from medfed.data.splits import UNASSIGNED, case_token
from medfed.errors import DataError, LabelError

from ..hospital_folder import MARK, SECRET


def case(**values: object) -> ListedCase:
    return ListedCase(MARK, MARK, (Path(MARK) / "a.nii.gz", ()), **values)  # type: ignore[arg-type]


def test_what_is_printed_names_no_patient() -> None:
    full = case(label=Path(MARK), split="val", attributes={"name": MARK}, masks=((MARK, Path(MARK)),))
    assert repr(full) == "ListedCase(2 image paths, split='val')"
    listing = CaseListing("BIDS", (full, case()), read=(Path(MARK),), left_out={"notes": (Path(MARK),)})
    assert repr(listing) == "CaseListing('BIDS', 2 cases)"


def test_a_case_has_no_split_class_or_attribute_unless_the_folder_says_so() -> None:
    plain = case()
    assert (plain.split, plain.target, plain.label, plain.masks, plain.fault) == (
        UNASSIGNED,
        None,
        None,
        (),
        None,
    )
    # Shared by all cases, so nobody may write to it.
    assert isinstance(plain.attributes, MappingProxyType)


class Broken(Layout, frozen=True, tag="broken"):
    """A layout of a table with a row that is wrong of its case."""

    title, needs, order = "a broken table", "a table", 99

    def evidence(self, survey: Survey) -> str | None:
        return None

    def read(self, survey: Survey) -> CaseListing:
        raise CaseError(MARK, "its class is no number", LabelError, "broken.csv row 7")


def test_an_error_of_one_case_is_told_by_its_token_and_its_row(tmp_path: Path) -> None:
    with pytest.raises(LabelError) as caught:
        index_folder(tmp_path, site_secret=SECRET, layout=Broken())
    assert str(caught.value) == (
        f"broken.csv row 7 (case {case_token(SECRET, MARK)}): its class is no number"
    )
    error = CaseError(MARK, "words")
    assert (str(error), error.case_id, error.kind, error.where) == ("words", MARK, DataError, "")
