"""How many transfers run at once: at most the limit, more after quick ones, half after slow ones."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from medfed.exchange import _concurrency
from medfed.exchange._concurrency import SLOW_S, run_bounded


class Transfers:
    """Transfers that end when the test's clock is read while waiting, one after another."""

    def __init__(self, monkeypatch, seconds) -> None:
        self.now, self.seconds, self.running, self.widths = 0.0, iter(seconds), [], []
        monkeypatch.setattr(_concurrency, "wait", self.wait)
        monkeypatch.setattr(_concurrency.time, "monotonic", lambda: self.now)

    def start(self) -> Future:
        future: Future = Future()
        self.running.append(future)
        return future

    def wait(self, running, return_when=None):
        if not running or return_when is None:
            return set(), set()
        self.widths.append(len(running))
        self.now += next(self.seconds)
        oldest = next(iter(running))
        oldest.set_result("done")
        return {oldest}, set()


def widths(monkeypatch, seconds, jobs: int, limit: int, initial: int | None) -> list[int]:
    """Return how many transfers were running at each wait while there were jobs left to start."""
    transfers, names = Transfers(monkeypatch, seconds), []
    run_bounded(
        ((str(number), transfers.start) for number in range(jobs)),
        lambda name, result: names.append(name),
        limit,
        initial,
    )
    assert names == [str(number) for number in range(jobs)]
    return transfers.widths


def test_it_starts_with_the_limit_where_nothing_else_is_said(monkeypatch):
    assert widths(monkeypatch, [0.0] * 6, jobs=6, limit=3, initial=None) == [3, 3, 3, 3, 2, 1]


def test_each_quick_transfer_allows_one_more(monkeypatch):
    # One at a time, then two, then three (the limit); all are quick, so the rest is waited for at the end.
    assert widths(monkeypatch, [0.0] * 6, jobs=6, limit=3, initial=1) == [1, 2, 3, 3, 2, 1]


def test_a_slow_transfer_halves_their_number(monkeypatch):
    # Four run; the first takes long, so only two may: two more end before the next one starts.
    assert widths(monkeypatch, [SLOW_S, 0.0, 0.0, 0.0, 0.0], 5, limit=4, initial=4)[:3] == [4, 3, 2]


def test_an_error_ends_it_once_nothing_runs_any_more():
    failed, running = Future(), Future()
    failed.set_exception(OSError("the disk is full"))
    running.set_result("done")
    finished = []
    with pytest.raises(OSError, match="the disk is full"):
        run_bounded(
            [("first", lambda: failed), ("second", lambda: running)],
            lambda name, result: finished.append(name),
            limit=1,
        )
    assert finished == []
