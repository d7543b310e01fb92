"""A case whose row cannot be used says why, by its token, each time it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.case import Case
from medfed.data.case_rows import CaseRows
from medfed.data.refusals import MissingRowError
from medfed.errors import DataError


def case(token: str) -> Case:
    return Case(id="Meier", patient="Meier", image=(Path("Meier.nii"),), token=token, split="train")


def test_a_case_without_a_row_is_refused_with_its_reason() -> None:
    refusal = DataError("case bb: its row says two ages")
    rows = CaseRows({"aa": [1.0]}, {"aa": []}, {"bb": refusal})
    rows.check(case("aa"))
    with pytest.raises(DataError, match="two ages") as caught:
        rows.check(case("bb"))
    assert caught.value is refusal
    with pytest.raises(
        MissingRowError, match=r"cc.*the table beside the images was read without it"
    ) as missing:
        rows.check(case("cc"))
    assert "Meier" not in str(missing.value)


def test_what_is_printed_of_rows_holds_no_number() -> None:
    assert "1.0" not in repr(CaseRows({"aa": [1.0]}, {}))
