"""Polling while a command runs."""

from __future__ import annotations

import threading

import pytest

from medfed.deployment.background import run_periodically
from medfed.errors import DataError


def test_a_function_is_called_in_its_own_thread_until_the_block_ends():
    names, thrice = [], threading.Event()

    def poll() -> None:
        names.append(threading.current_thread().name)
        if len(names) == 3:
            thrice.set()

    with run_periodically(0.001, poll, "medfed-poll"):
        assert thrice.wait(30)
    count = len(names)
    assert set(names) == {"medfed-poll"}
    assert "medfed-poll" not in {thread.name for thread in threading.enumerate()}
    assert len(names) == count


def test_it_stops_where_the_block_fails():
    with pytest.raises(DataError, match="no case"), run_periodically(0.001, lambda: None, "medfed-fails"):
        raise DataError("no case")
    assert "medfed-fails" not in {thread.name for thread in threading.enumerate()}
