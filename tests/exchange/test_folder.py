"""Processes that exchange through a folder give the same weights as one process, even after a kill."""

from __future__ import annotations

import pytest
from federation import over

from medfed.exchange.folder import FolderStore


@pytest.mark.slow
def test_processes_over_a_folder_give_the_bits_of_one_process(federation, undisturbed, tmp_path):
    study = federation(over(str(tmp_path / "share")))
    study.start("hub", "north", "south")
    assert study.digest() == undisturbed()
    study.ended("north", "south")


@pytest.mark.slow
@pytest.mark.parametrize("who", ["hub", "north"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_costs_no_bit(federation, undisturbed, tmp_path, who, after):
    study = federation(over(str(tmp_path / "share")), settings={"pause_s": 0.1})
    study.start("hub", "north", "south")
    study.until(lambda: (study.folder / "hub" / "pid").exists(), "the hub runs")
    study.until(lambda: len(study.rounds()) >= after, f"round {after} is over")
    study.kill(who)
    study.start(who)
    assert study.digest() == undisturbed()


def test_a_folder_is_polled_often_at_first_and_later_every_poll_s(tmp_path, monkeypatch):
    store, waited = FolderStore(str(tmp_path), poll_s=0.5), []
    monkeypatch.setattr(store._closed, "wait", waited.append)
    for seconds in (0.0, 0.02, 1.0, 4.0, 600.0):
        store.wait(seconds)
    assert waited == pytest.approx([0.02, 0.02, 0.1, 0.4, 0.5])
    monkeypatch.undo()
    store.close()


def test_only_names_of_rounds_are_deleted_with_rounds(tmp_path):
    store = FolderStore(str(tmp_path))
    for name in ("r1", "r2", "r²", "rx"):
        store.put(f"glob/study/{name}/m", b"1")
    store.delete_rounds("study", before=2)
    assert [store.get(f"glob/study/{name}/m") for name in ("r1", "r2", "r²", "rx")] == [
        None,
        b"1",
        b"1",
        b"1",
    ]
    store.close()
