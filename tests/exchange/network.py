"""Networks that are not medfed's, as tests need them: scripted tasks, and a FedAvg over hand-over folders."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medfed.exchange._handoff import Answer, Handoff, Task, new_task

Arrays = Mapping[str, Any]


class ScriptedLink:
    """A link whose network sends these tasks in turn, and which keeps the answers."""

    network = "the test network"

    def __init__(self, *tasks: tuple[Task, Arrays]) -> None:
        self.tasks = list(tasks)
        self.answers: list[tuple[Task, Answer]] = []
        self.given_up: set[str] = set()
        self.ended = False
        self.stopped, self.is_closed = "", False

    def next_task(self, timeout_s: float) -> tuple[Task, Arrays] | None:
        return self.tasks.pop(0) if self.tasks else None

    def is_open(self, task: Task) -> bool:
        return task.id not in self.given_up

    def answer(self, task: Task, answer: Answer) -> None:
        self.answers.append((task, answer))

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def close(self) -> None:
        self.is_closed = True

    @property
    def last(self) -> Answer:
        return self.answers[-1][1]


def train(round: int, run: str = "run-1", **arrays: Any) -> tuple[Task, Arrays]:
    return new_task(run, "train", round), arrays or {"w": np.ones(2, np.float32)}


def evaluate(round: int, run: str = "run-1", **arrays: Any) -> tuple[Task, Arrays]:
    return new_task(run, "evaluate", round), arrays or {"w": np.ones(2, np.float32)}


def fedavg(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the mean as Flower 1.42 computes it (`aggregate_arrayrecords`): float32, site by site."""
    total = sum(answer.numbers["num-examples"] for answer in answers)
    merged: dict[str, Any] = {}
    for answer in answers:
        for name, value in answer.arrays.items():
            part = value * (answer.numbers["num-examples"] / total)
            merged[name] = merged[name] + part if name in merged else part
    return {name: np.asarray(value) for name, value in merged.items()}


def ask_all(folders: Sequence[Path], kind: Any, round: int, arrays: Arrays) -> list[Answer]:
    """Send a task to every site at once, as a strategy does, and return the answers in their order."""
    answers: dict[int, Answer] = {}

    def ask(index: int, folder: Path) -> None:
        answers[index] = Handoff(folder).ask(new_task("run-1", kind, round), arrays, restart_s=60)

    threads = [threading.Thread(target=ask, args=(i, folder)) for i, folder in enumerate(folders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [answers[index] for index in range(len(folders))]
