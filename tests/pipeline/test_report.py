"""A run's report is written again from what was measured."""

from __future__ import annotations

import msgspec
import pytest

from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.rows import Row
from medfed.pipeline.report import report_run
from medfed.runs.facts import RunFacts

ROW = Row(round=1, site="north", split="test", model="federated", metric="dice", value=0.8, n=9)


def test_reported_rows_become_the_report(tmp_path):
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(RunFacts(study="heart")))
    rows.write(tmp_path / "reported.jsonl", [ROW])
    folder = report_run(tmp_path)
    assert rows.read_rows(folder.rows) == [ROW]
    assert "0.80" in (tmp_path / "report.html").read_text()


def test_a_run_in_which_nothing_was_measured_is_refused(tmp_path):
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(RunFacts(study="heart")))
    with pytest.raises(RunError, match="nothing was measured in this run yet; finish it with medfed train"):
        report_run(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"run\.json"):
        report_run(tmp_path)
