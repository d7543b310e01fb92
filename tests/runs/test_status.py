from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfed.runs import status
from medfed.runs.status import Status


def test_a_change_of_state_is_written_at_once_and_steps_at_most_once_per_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "status.json", [100.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: clock[0])
    current = Status(path, study="small")
    assert json.loads(path.read_text())["state"] == "starting"
    current.update(state="training", step=1)
    current.update(step=2)
    assert json.loads(path.read_text())["step"] == 1
    clock[0] += status.MIN_INTERVAL_S
    current.update(step=3)
    assert json.loads(path.read_text())["step"] == 3


def test_a_full_disk_loses_a_status_and_nothing_else(tmp_path: Path) -> None:
    Status(tmp_path / "missing" / "status.json").update(state="training")
