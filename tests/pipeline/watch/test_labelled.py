"""Results of a look with labels: of its new patients alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline.watch.watched import TABLE, run_of, table

from medfed.errors import DataError
from medfed.evaluation.rows import read_cases, read_rows
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.watch.labelled import measure_look
from medfed.pipeline.watch.state import WatchFolder
from medfed.study.reading import read_run_study


def test_only_these_patients_are_measured(tmp_path: Path) -> None:
    run = run_of(tmp_path / "made", TABLE)
    state, data = WatchFolder(run.path, "north"), table(tmp_path / "new.csv", 30, 2, target=True)
    state.path.mkdir(parents=True)
    study, chosen = read_run_study(run.study), {f"p2-{number}" for number in range(12)}
    measure_look(study, run, state, data, "north", OwnChoices(), 7, chosen)
    assert len({case.case for case in read_cases(state.cases)}) == 12
    rows = {row.metric: row for row in read_rows(state.rows)}
    assert (rows["patients"].value, rows["patients"].round) == (12, 7)
    with pytest.raises(DataError, match="no new patient has a label or target"):
        measure_look(study, run, state, data, "north", OwnChoices(), 8, {"nobody"})
