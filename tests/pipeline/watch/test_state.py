"""What a hospital keeps of a watch: written whole, read back, refused where damaged."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from medfed.errors import RunError
from medfed.evaluation.drift.compare import Compared, Level
from medfed.evaluation.drift.sketch import Sketch
from medfed.pipeline.watch.state import Look, Reference, WatchFolder, read_sketch
from medfed.runs.trained import TrainedCases


def compared(state: str) -> Compared:
    return Compared(name="age", kind="input", what="values", reference=9, look=8, state=state)


def test_reference_and_looks_are_read_back(tmp_path: Path) -> None:
    state = WatchFolder(tmp_path, "north")
    assert (state.read_reference(), state.read_looks()) == (None, [])
    reference = Reference(
        made="2026", study="s", weights_sha256="w", patients=9, unseen=9, level=Level(),
        sketch=Sketch(columns=[]), cases=TrainedCases("00"),
    )  # fmt: skip
    look = Look(
        number=1,
        made="2026",
        patients=8,
        known=0,
        unusable=0,
        compared=[compared("alarm"), compared("change")],
    )
    with state.alone():
        state.write_reference(reference)
        state.append_look(look)
        state.append_look(msgspec.structs.replace(look, number=2))
    assert state.read_reference() == reference
    assert [one.number for one in state.read_looks()] == [1, 2]
    assert [one.state for one in state.read_looks()[0].alarms] == ["alarm"]
    assert state.looks.stat().st_mode & 0o077 == 0


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    state = WatchFolder(tmp_path, "north")
    state.path.mkdir(parents=True)
    for path in (state.reference, state.looks, state.sketch):
        path.write_text("{\n")
    with pytest.raises(RunError, match=r"reference\.json: damaged"):
        state.read_reference()
    with pytest.raises(RunError, match=r"looks\.jsonl: damaged .*how many looks there were"):
        state.read_looks()
    with pytest.raises(RunError, match=r"sketch\.json: damaged"):
        read_sketch(state.sketch)


def test_one_look_at_a_time(tmp_path: Path) -> None:
    state = WatchFolder(tmp_path, "north")
    with state.alone(), pytest.raises(RunError, match="another process is looking now"), state.alone():
        pass
