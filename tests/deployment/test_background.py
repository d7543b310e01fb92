"""Polling while a command runs, and what its status says when it ends."""

from __future__ import annotations

import json
import threading

import pytest

from medfed.deployment.background import record_exit, run_periodically
from medfed.errors import DataError
from medfed.runs.status import Status


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


def ended(path, error: BaseException | None, raised: type[BaseException] | None = None) -> dict:
    status = Status(path, study="lungs")
    status.update(state="training")

    def block() -> None:
        with record_exit(status):
            if error is not None:
                raise error

    if raised is None:
        block()
    else:
        with pytest.raises(raised):
            block()
    return json.loads(path.read_text())


def test_the_status_says_how_it_ended(tmp_path):
    path = tmp_path / "status.json"
    assert ended(path, None)["state"] == "training"
    ours = ended(path, DataError("case 1f: no slice"), DataError)
    assert (ours["state"], ours["reason"]) == ("stopped", "case 1f: no slice")
    for interruption in (KeyboardInterrupt(), SystemExit(1)):
        stopped = ended(path, interruption, KeyboardInterrupt)
        assert stopped["state"] == "interrupted"
        assert "reason" not in stopped


def test_another_librarys_message_which_may_quote_a_path_is_not_written(tmp_path):
    stopped = ended(tmp_path / "status.json", OSError("/data/Mrs Smith"), OSError)
    assert (stopped["state"], stopped["reason"]) == ("stopped", "OSError")
    assert "Smith" not in (tmp_path / "status.json").read_text()
