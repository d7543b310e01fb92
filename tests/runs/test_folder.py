from __future__ import annotations

from pathlib import Path

import pytest

from medfed.errors import RunError
from medfed.runs.facts import RunFacts, Withdrawal
from medfed.runs.folder import RunFolder


def test_where_files_lie(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.facts == tmp_path / "run.json"
    assert folder.checkpoint("local:north") == tmp_path / "checkpoints" / "local-north.ckpt"
    assert folder.site("north") == tmp_path / "sites" / "north"
    assert folder.site("north").is_dir()


def test_facts_come_back_as_they_were_written(tmp_path: Path) -> None:
    facts = RunFacts(study="small", sites=["north"], cases={"north": {"train": 3}}, seconds=1.5)
    RunFolder(tmp_path).write_facts(facts)
    assert RunFolder(tmp_path).read_facts() == facts


def test_a_folder_without_facts_and_damaged_facts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run folder: it has no run\.json"):
        RunFolder(tmp_path).read_facts()
    (tmp_path / "run.json").write_text('{"seed": "x"}')
    with pytest.raises(RunError, match="is damaged"):
        RunFolder(tmp_path).read_facts()


def test_a_withdrawal_is_read_if_there_is_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_withdrawal() is None
    folder.withdrawal.write_text(
        '{"site": "north", "joined": 2, "retrained_from": 1, "study_before": "a", "study": "b", "when": ""}'
    )
    assert folder.read_withdrawal() == Withdrawal("north", 2, 1, "a", "b", "")
