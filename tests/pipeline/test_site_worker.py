"""Worker processes of a simulation: the bits of one process, whoever dies, and none left in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medfed.errors import DataError, QuorumError
from medfed.pipeline.federate import StudyRun, federate
from medfed.runs.checkpoints import load_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import read_rounds
from medfed.wire.audit_log import AuditLog, verify
from medfed.wire.weights import Weights, digest

from .two_tables import CASES, opened, write_tables

ONE = ("simulation.threads=1",)
TWO = ("simulation.engine=processes", "simulation.workers=2", "simulation.threads=1")

# Of each kind of state that a site has: a control variate; secrets between sites, and a personal model.
METHODS = {
    "scaffold": ("rule.kind=scaffold", "train.local.kind=scaffold"),
    "secure_sum": (
        "privacy.kind=secure_sum",
        "privacy.min_sites=2",
        "privacy.colluding=0",
        "sampling.minimum=2",
        "train.local.kind=ditto",
    ),
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
    found = subprocess.run(
        ["ps", "-e", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=2) for line in found.stdout.splitlines()]
    return [int(pid) for pid, ppid, args in lines if int(ppid) == parent and "site_worker" in args]


def run_in(folder: Path, overrides: Sequence[str], progress: Progress | None = None) -> StudyRun:
    folder.mkdir(exist_ok=True)
    run = opened(folder, overrides)
    return replace(run, progress=progress or Progress(), audit=AuditLog(folder / "run" / "audit.jsonl"))


def trained(folder: Path, overrides: Sequence[str], progress: Progress | None = None) -> Weights:
    return federate(run_in(folder, overrides, progress)).weights


def told(folder: Path) -> list[tuple[object, ...]]:
    """Return what the rounds say but for times and bytes."""
    lines = read_rounds(folder / "run" / "rounds.jsonl")
    return [
        (one.round, one.site, one.status, one.examples, {**one.scalars, "train/seconds": 0}) for one in lines
    ]


@pytest.mark.slow
def test_the_bits_are_those_of_one_process(tmp_path: Path) -> None:
    expected = trained(tmp_path / "one", ONE)
    progress = Watched()
    weights = trained(tmp_path / "two", TWO, progress)
    assert digest(weights) == digest(expected)
    assert told(tmp_path / "two") == told(tmp_path / "one")
    assert {site for site, _, _ in progress.trained} == set(CASES)
    assert progress.turns == {"north": ("north",), "south": ("south",)}
    assert workers_of(os.getpid()) == []
    one, two = (verify(tmp_path / name / "run" / "audit.jsonl").lines for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_killed_in_each_round_changes_no_bit(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(tmp_path / "one", (*METHODS[method], *ONE))
    killed: list[int] = []

    def kill() -> None:
        workers = workers_of(os.getpid())
        assert len(workers) == 2
        killed.append(workers[0])
        os.kill(workers[0], signal.SIGKILL)

    weights = trained(tmp_path / "two", (*METHODS[method], *TWO), Watched(kill))
    assert len(set(killed)) == 2
    if method == "secure_sum":  # whose training order is drawn from a secret of the run
        assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)
    else:
        assert digest(weights) == digest(expected)
    replaced = [record.message for record in caplog.records if "takes its place" in record.message]
    assert len(replaced) == 2
    assert "was ended by SIGKILL" in replaced[0]
    assert workers_of(os.getpid()) == []


@pytest.mark.slow
def test_a_sites_error_is_named_with_its_traceback_and_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(tmp_path / "run", (*TWO, "sampling.minimum=2"))
    table = tmp_path / "run" / "south.csv"
    table.write_text(table.read_text() + "southz,3,1,train\n")  # a case more than this process has read
    with pytest.raises(
        QuorumError, match="site 'south': its folder holds other cases than when this run read"
    ):
        federate(run)
    record = next(record for record in caplog.records if record.message.startswith("site 'south' stopped"))
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert isinstance(error, DataError)
    assert 'site_worker.py", line' in str(error.__cause__)
    assert workers_of(os.getpid()) == []


PROGRAM = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
from medfed.cli.commands import main
main(["train", *sys.argv[1:]])
"""


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(what: Callable[[], bool], max_wait_s: float = 120) -> None:
    end = time.monotonic() + max_wait_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.slow
def test_whoever_ends_the_command_no_worker_is_left_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    longer = ("train.rounds=80", "evaluation.draws=20")  # the second signal must not come after the last
    expected = trained(tmp_path / "one", (*longer, *ONE))
    study, out = str(write_tables(tmp_path)), tmp_path / "run"
    overrides = [word for one in (*longer, *TWO) for word in ("--set", one)]

    def rounds() -> int:
        return max((line.round for line in read_rounds(out / "rounds.jsonl")), default=0)

    ends: list[int] = []
    for signal_sent, more in ((signal.SIGKILL, ()), (signal.SIGINT, ("--resume",))):
        before = rounds()
        parent = command(study, "--out", str(out), *overrides, *more)
        wait_for(lambda: rounds() > before)  # noqa: B023 - called at once
        workers = workers_of(parent.pid)
        parent.send_signal(signal_sent)
        ends.append(parent.wait(60))
        assert len(workers) == 2
        wait_for(lambda: not any(map(runs, workers)), 30)  # noqa: B023
    assert ends == [-signal.SIGKILL, 130]
    last = command(study, "--out", str(out), *overrides, "--resume")
    output = last.communicate(timeout=300)[0]
    assert last.returncode == 0, output
    weights = load_checkpoint(RunFolder(out).checkpoint("federated"))
    assert digest(weights) == digest(expected)
