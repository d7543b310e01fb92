"""Rank 0 speaks with the hub; a worker reads the model that it received, and sends nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from hospitals import make_hospital
from process_group import run_group

from medfed.deployment.ddp import (
    MODEL,
    RUN_FOLDER,
    Rank0Exchange,
    WorkerExchange,
    is_worker,
    read_left_out,
)
from medfed.errors import ExchangeError
from medfed.exchange import DropOut
from medfed.wire import encoding
from medfed.wire.update import GlobalModel, Update


class Side:
    """A site's side of an exchange that stores the received model in a file."""

    closed = False

    def __init__(self, folder) -> None:
        self.model_path, self.sent = folder / "model", []

    def fetch(self, site: str, round: int) -> GlobalModel:
        model = GlobalModel(round + 1, {"w": torch.tensor([1.5, -2.0])}, study_digest="study")
        self.model_path.write_bytes(encoding.encode_global(model))
        return model

    def send(self, update: Update) -> None:
        self.sent.append(update)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Restore the environment variables that rank 0 sets."""
    for name in (RUN_FOLDER, MODEL, "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_worker_reads_the_model_that_rank_0_received(tmp_path):
    side = Side(tmp_path)
    first = Rank0Exchange(side, tmp_path, tmp_path)
    received = first.fetch("north", 3)
    assert first.received is received
    read = WorkerExchange().fetch("north", 3)
    assert read.round == received.round == 4
    assert torch.equal(read.weights["w"], received.weights["w"])
    update = Update("north", 5, {}, 0)
    first.send(update)
    assert (side.sent, first.closed) == ([update], False)


def test_a_worker_keeps_the_model_though_rank_0_writes_a_later_one_over_its_file(tmp_path):
    side = Side(tmp_path)
    before = Rank0Exchange(side, tmp_path, tmp_path).fetch("north", 3).weights["w"].clone()
    read = WorkerExchange().fetch("north", 3)
    with side.model_path.open("r+b") as file:
        file.write(b"\0" * side.model_path.stat().st_size)
    assert torch.equal(read.weights["w"], before)
    assert before.any()


def test_a_worker_sends_nothing():
    update = Update("north", 5, {}, 0)
    for send in (WorkerExchange().send, WorkerExchange().transmission):
        with pytest.raises(ExchangeError, match="site 'north': only rank 0 sends"):
            send(update)
    WorkerExchange().drop_out("north", DropOut.DISK)


def test_a_process_is_a_worker_only_below_a_rank_0_of_medfed(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_worker()  # another program's launcher sets LOCAL_RANK, too
    Rank0Exchange(Side(tmp_path), tmp_path, tmp_path)
    assert is_worker()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not is_worker()
    monkeypatch.delenv("LOCAL_RANK")
    assert not is_worker()


def test_a_worker_leaves_out_what_rank_0_left_out(tmp_path):
    Rank0Exchange(Side(tmp_path), tmp_path, tmp_path, ("a1", "b2"))
    assert read_left_out(tmp_path) == ("a1", "b2")
    Rank0Exchange(Side(tmp_path), tmp_path, tmp_path)  # of a run that goes on after the files were repaired
    assert read_left_out(tmp_path) == ()


@pytest.mark.slow
def test_a_worker_reads_only_the_cases_that_it_trains_on(tmp_path):
    """Five cases to train on and one without its image, on two processes that gloo connects."""
    folder = make_hospital(tmp_path / "north")
    table = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(table.replace(",val,", ",train,").replace(",test,", ",train,"))
    (folder / "north0-image.nii.gz").unlink()
    script = str(Path(__file__).parent / "ddp_reads.py")
    done = run_group(
        [sys.executable, script, str(tmp_path)],
        timeout=200,
        environment={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["examples"] == second["examples"] == 5
    # Each trains on three of the five, as Lightning repeats one, and together they train on all.
    assert len(first["trained"]) == len(second["trained"]) == 3
    assert len({*first["trained"], *second["trained"]}) == 5
    assert sorted(second["read"]) == sorted(set(second["trained"]))
    # Rank 0 alone reads every case: five, and the one that it could not read is refused by its missing file.
    assert len(set(first["read"])) == len(first["read"])
    assert {*first["trained"], *second["trained"]} <= set(first["read"])
