"""What a preflight says of the table beside images: cases without a usable row, and odd columns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from medfed.data.case import Case
from medfed.data.case_rows import CaseRows
from medfed.data.preflight.rows import table_facts, table_findings
from medfed.errors import DataError


def case(token: str) -> Case:
    return Case(id="Meier", patient="Meier", image=(Path("Meier.nii"),), token=token, split="train")


ROWS = CaseRows(
    {"aa": [1.0]}, {"aa": []}, {"bb": DataError("case bb: row 3 says two ages")},
    warnings=("column 'age' holds 0 in 6 rows",), notes=("read as numbers with a comma",),
)  # fmt: skip
INDEX = SimpleNamespace(rows=ROWS)
LISTING = SimpleNamespace(names=("row 2", "row 3"), cases=(case("aa"), case("bb")))


def test_a_refused_row_is_named_as_the_preflight_names_its_case() -> None:
    told = [(finding.code, finding.case, finding.detail) for finding in table_findings(INDEX, LISTING)]  # type: ignore[arg-type]
    assert told == [
        ("table_row", "row 3", "row 3 says two ages"),
        ("table_column", "", "column 'age' holds 0 in 6 rows"),
        ("note", "", "read as numbers with a comma"),
    ]


def test_without_a_table_nothing_is_said() -> None:
    for index in (None, SimpleNamespace(rows=None)):
        assert list(table_findings(index, LISTING)) == []  # type: ignore[arg-type]
        assert table_facts(index, None) == {}  # type: ignore[arg-type]
    settings = SimpleNamespace(table=SimpleNamespace(features=("age", "sex")))
    told = table_facts(INDEX, SimpleNamespace(settings=settings))["table"]  # type: ignore[arg-type]
    assert told["columns"] == ["age", "sex"]
