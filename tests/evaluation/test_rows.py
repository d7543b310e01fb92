"""Rows survive a killed writer, a resumed run and a spreadsheet."""

from __future__ import annotations

import csv
import math

import msgspec
import pytest

from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.rows import CaseRow, Row

ROW = Row(
    round=3,
    site="west",
    split="test",
    model="federated",
    metric="dice",
    value=0.1 + 0.2,
    n=16,
    low=0.1,
    high=0.5,
)
CASE = CaseRow(
    model="local:north",
    site="north",
    split="test",
    case="a1",
    patient="p1",
    metric="dice",
    value=0.5,
    structure="lesion",
    attributes={"sex": "F", "age_band": "60-69"},
)


def test_rows_come_back_bit_for_bit_from_json_lines_and_from_csv(tmp_path):
    absent = Row(
        round=3,
        site="west",
        split="test",
        model="pooled",
        metric="auroc",
        value=None,
        n=4,
        note='one, "class"',
    )
    written = [ROW, absent]
    rows.write(tmp_path / "rows.jsonl", written)
    rows.write_csv(tmp_path / "rows.csv", written)
    assert rows.read_rows(tmp_path / "rows.jsonl") == written
    with open(tmp_path / "rows.csv", newline="") as file:
        lines = [{name: text or None for name, text in line.items()} for line in csv.DictReader(file)]
    assert [msgspec.convert(line, Row, strict=False) for line in lines] == written


def test_a_line_left_half_written_is_skipped_and_then_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [ROW])
    with open(path, "ab") as file:
        file.write(msgspec.json.encode(ROW)[:20])
    assert rows.read_rows(path) == [ROW]
    later = msgspec.structs.replace(ROW, round=4)
    rows.append(path, [later])
    assert rows.read_rows(path) == [ROW, later]


def test_a_row_written_again_by_a_resumed_run_counts_once_with_its_later_value(tmp_path):
    path = tmp_path / "cases.jsonl"
    rows.append(path, [CASE])
    again = msgspec.structs.replace(CASE, value=0.75)
    rows.append(path, [again])
    assert rows.read_cases(path) == [again]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(msgspec.json.encode(ROW) + b"\n{broken\n" + msgspec.json.encode(ROW) + b"\n")
    with pytest.raises(RunError, match=r"rows\.jsonl: line 2 is not a Row"):
        rows.read_rows(path)


def test_nan_is_refused_since_json_would_turn_it_into_null():
    with pytest.raises(ValueError, match="value is nan; use None and a note"):
        msgspec.structs.replace(ROW, value=math.nan)


def test_a_value_that_is_missing_needs_a_reason():
    with pytest.raises(ValueError, match="no value, and no note"):
        msgspec.structs.replace(ROW, value=None)


def test_cases_of_one_model_are_read_alone(tmp_path):
    about = {
        "site": "federated",
        "split": "test",
        "case": "c",
        "patient": "p",
        "metric": "dice",
        "value": 0.5,
    }
    rows.write(
        tmp_path / "cases.jsonl", [rows.CaseRow(model=name, **about) for name in ("federated", "pooled")]
    )
    assert [one.model for one in rows.read_cases(tmp_path / "cases.jsonl", model="federated")] == [
        "federated"
    ]
    assert len(rows.read_cases(tmp_path / "cases.jsonl")) == 2
