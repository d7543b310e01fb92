"""Worker processes of a simulation: the bits of one process, whoever dies, and none left in the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from medfed.errors import QuorumError
from medfed.pipeline.federate import StudyRun, federate
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import read_rounds
from medfed.study.study import Simulation
from medfed.wire.audit_log import AuditLog, verify
from medfed.wire.weights import Weights, digest

from .two_tables import CASES, opened

ONE = ("simulation.threads=1",)
TWO = ("simulation.engine=processes", "simulation.workers=2", "simulation.threads=1")

# Of each kind of state that a site has: none, a control variate, a personal model, secrets between sites.
METHODS = {
    "fedavg": (),
    "scaffold": ("rule.kind=scaffold", "train.local.kind=scaffold"),
    "ditto": ("train.local.kind=ditto", "train.optimiser.kind=adam", "train.optimiser.lr=0.1"),
    "secure_sum": ("privacy.kind=secure_sum", "privacy.min_sites=2", "sampling.minimum=2"),
}


class Watched(Progress):
    """Notes which sites train, and calls `once` in each round, at the first step that it is shown."""

    def __init__(self, once: Callable[[], None] = lambda: None) -> None:
        self.trained: list[tuple[str, int, int]] = []
        self.turns: dict[str, Sequence[str]] = {}
        self.lines: list[str] = []
        self._once, self._due = once, True

    def training_together(self, site: str, step: int, steps: int, turns: Sequence[str]) -> None:
        self.trained.append((site, step, steps))
        self.turns[site] = tuple(turns)
        if self._due:
            self._due = False
            self._once()

    def log(self, text: str) -> None:
        self.lines.append(text)

    def round(self, report: object) -> None:
        self._due = True


def workers_of(parent: int) -> list[int]:
    """Return the process ids of a process's workers."""
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in found.stdout.splitlines()]
    return [int(pid) for pid, ppid, args in lines if int(ppid) == parent and "site_worker" in args]


def run_in(folder: Path, overrides: Sequence[str], progress: Progress | None = None) -> StudyRun:
    folder.mkdir(exist_ok=True)
    run = opened(folder, overrides)
    return replace(run, progress=progress or Progress(), audit=AuditLog(folder / "run" / "audit.jsonl"))


def trained(folder: Path, overrides: Sequence[str], progress: Progress | None = None) -> Weights:
    return federate(run_in(folder, overrides, progress)).weights


def kill_a_worker() -> None:
    os.kill(workers_of(os.getpid())[0], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_bits_are_those_of_one_process(tmp_path: Path, method: str) -> None:
    expected = trained(tmp_path / "one", (*METHODS[method], *ONE))
    progress = Watched()
    weights = trained(tmp_path / "two", (*METHODS[method], *TWO), progress)
    assert digest(weights) == digest(expected)
    assert {site for site, _, _ in progress.trained} == set(CASES)
    assert progress.turns == {"north": ("north",), "south": ("south",)}
    assert workers_of(os.getpid()) == []
    assert read_rounds(tmp_path / "two" / "run" / "rounds.jsonl") == []  # TODO
