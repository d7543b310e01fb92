"""What is withheld from the report is shown to the owner of the data alone, and written nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

from medfed.evaluation.report.own_values import own_values
from medfed.evaluation.rows import write
from medfed.runs.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1]))
from case_rows import class_rows, image_row

from .result_rows import result


def lines_of(tmp_path, rows, cases):
    folder = RunFolder(tmp_path)
    write(folder.rows, rows)
    write(folder.cases, cases)
    before = sorted(path.name for path in tmp_path.iterdir())
    lines = own_values(tmp_path, "north")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return lines


def test_a_withheld_hospital_sees_each_of_its_patients(tmp_path):
    cases = [image_row("a", 0.6543), image_row("b", 0.0, note="missed"), image_row("c", 0.9, site="south")]
    withheld = result(None, metric="patients", n=None)
    assert lines_of(tmp_path, [withheld], cases) == ["lesion Dice: 0.654, missed"]


def test_a_metric_that_is_withheld_alone_is_shown_and_no_other(tmp_path):
    cases = [image_row("a", 0.6), image_row("a", 0.5, structure="liver"), image_row("a", 3.0, "hd95_mm")]
    rows = [result(None, structure="lesion"), result(None, structure="liver", note="not measured")]
    assert lines_of(tmp_path, rows, cases) == ["lesion Dice: 0.600"]
    assert lines_of(tmp_path, [result(0.6, structure="lesion")], cases) == []


def test_probabilities_stand_with_what_the_patient_has(tmp_path):
    cases = class_rows("a", 0.8, True, split="test")
    assert lines_of(tmp_path, [result(None, metric="patients", n=None)], cases)[-1].endswith("0.800 (has it)")


def test_without_case_rows_there_is_nothing_to_show(tmp_path):
    assert own_values(tmp_path, "north") == []
