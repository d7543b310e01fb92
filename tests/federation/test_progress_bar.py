"""One bar counts the rounds of all sites in a process, and stands for their Trainers' own bars."""

from __future__ import annotations

import threading

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from medfed.federation.progress_bar import RoundsBar, replace_progress_bar, use_rounds_bar


@pytest.fixture(autouse=True)
def _no_bar_before():
    use_rounds_bar(None)
    yield
    use_rounds_bar(None)


def trainer(shown: bool = True) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=shown,
        callbacks=[TQDMProgressBar()] if shown else [],
    )  # fmt: skip


def test_a_trainer_outside_a_study_keeps_its_bar():
    alone = trainer()
    assert not replace_progress_bar(alone)
    assert alone.progress_bar_callback.is_enabled


def test_the_rounds_bar_stands_for_the_bars_of_all_sites(capsys):
    bar = RoundsBar(3)
    use_rounds_bar(bar)
    quiet = trainer(shown=False)
    assert not replace_progress_bar(quiet)
    assert not bar.shown  # no site would have shown one
    bar.round_finished()
    sites = [trainer(), trainer()]
    assert [replace_progress_bar(site) for site in sites] == [True, True]
    assert [site.progress_bar_callback.is_enabled for site in sites] == [False, False]
    assert not replace_progress_bar(sites[0])  # it is replaced already
    for _ in range(3):  # two more rounds and the report of the final model, which is no round
        bar.round_finished()
    assert bar._bar.n == 3
    bar.close()
    assert "rounds: 100%" in capsys.readouterr().err


def test_a_bar_is_of_the_thread_that_uses_it():
    use_rounds_bar(RoundsBar(1))
    replaced = []
    other = threading.Thread(target=lambda: replaced.append(replace_progress_bar(trainer())))
    other.start()
    other.join()
    assert replaced == [False]
