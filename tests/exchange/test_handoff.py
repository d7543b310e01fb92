"""Bridge and trainer share a folder: every bit arrives, and nobody waits for ever."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from medfed.errors import ExchangeError
from medfed.exchange._handoff import Answer, Handoff, new_task

ARRAYS = {
    "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # in Fortran's order
    "steps": np.array(7),
    "half": np.array([0.5, -0.0], np.float16),
    "double": np.array(1 / 3),
}


class Asked:
    """A bridge that waits for an answer in a thread of its own."""

    def __init__(self, folder, task, arrays=ARRAYS, restart_s=60.0):
        self._answer = []
        self._thread = threading.Thread(
            target=lambda: self._answer.append(Handoff(folder).ask(task, arrays, restart_s)), daemon=True
        )
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(60)
        assert self._answer, "the bridge waits for ever"
        return self._answer[0]


def test_a_task_and_its_answer_arrive_with_every_bit(tmp_path):
    trainer, task = Handoff(tmp_path), new_task("run-1", "train", 3)
    lock = trainer.become_trainer("north")
    asked = Asked(tmp_path, task)
    received, arrays = trainer.wait_for_task("", 60)
    assert received == task
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
    trainer.reply(task, Answer({"w": arrays["conv.weight"]}, {"num-examples": 12, "val/loss": math.nan}))
    answer = asked.answer()
    np.testing.assert_array_equal(answer.arrays["w"], ARRAYS["conv.weight"])
    assert answer.numbers["num-examples"] == 12
    assert math.isnan(answer.numbers["val/loss"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bridge.lock", "trainer.lock"]
    lock.close()


def test_files_are_their_owners_alone(tmp_path):
    folder, task = tmp_path / "handoff", new_task("run-1", "train", 1)
    lock = Handoff(folder).become_trainer("north")
    asked = Asked(folder, task)
    Handoff(folder).wait_for_task("", 60)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "task.safetensors").stat().st_mode & 0o777 == 0o600
    Handoff(folder).reply(task, Answer(error="no"))
    assert asked.answer() == Answer(error="no")
    lock.close()


def test_a_bridge_without_a_trainer_gives_up(tmp_path):
    answer = Asked(tmp_path, new_task("run-1", "train", 1), restart_s=0.1).answer()
    assert answer.error == "no trainer of this site has run for 0.1 s"


def test_a_trainer_that_stopped_for_good_is_not_waited_for_until_one_starts_again(tmp_path):
    Handoff(tmp_path).stop("its run folder cannot be read or written")
    assert Asked(tmp_path, new_task("r", "train", 1)).answer().error.startswith("its run folder")
    lock = Handoff(tmp_path).become_trainer("north")
    task = new_task("r", "train", 1)
    asked = Asked(tmp_path, task)
    result = Handoff(tmp_path).wait_for_task("", 60)
    assert result is not None
    Handoff(tmp_path).reply(task, Answer(numbers={"num-examples": 1}))
    assert asked.answer().numbers == {"num-examples": 1}
    lock.close()


def test_a_task_that_nobody_waits_for_any_more_is_left_over(tmp_path):
    """A bridge that was killed leaves its task; its round is over."""
    trainer = Handoff(tmp_path)
    lock = trainer.become_trainer("north")
    task = new_task("run-1", "train", 1)
    asked = Asked(tmp_path, task)
    trainer.wait_for_task("", 60)
    left_over = (tmp_path / "task.safetensors").read_bytes()
    trainer.reply(task, Answer(error="stop"))
    asked.answer()
    assert not trainer.is_waiting(task)
    (tmp_path / "task.safetensors").write_bytes(left_over)
    assert trainer.wait_for_task("", 0.2) is None
    assert not trainer.is_waiting(task)
    lock.close()


def test_the_task_that_was_answered_is_not_taken_twice(tmp_path):
    trainer, task = Handoff(tmp_path), new_task("run-1", "train", 1)
    lock = trainer.become_trainer("north")
    asked = Asked(tmp_path, task)
    assert trainer.wait_for_task("", 60) is not None
    assert trainer.is_waiting(task)
    assert trainer.wait_for_task(task.id, 0.2) is None
    trainer.reply(task, Answer(error="stop"))
    asked.answer()
    lock.close()


def test_a_second_trainer_is_refused(tmp_path):
    lock = Handoff(tmp_path).become_trainer("north")
    with pytest.raises(ExchangeError, match="site 'north': another process trains with this exchange folder"):
        Handoff(tmp_path).become_trainer("north")
    lock.close()
    Handoff(tmp_path).become_trainer("north").close()
