"""A study's hospitals in Ray workers on two nodes: the bits of one process, whoever dies."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback_network import needs_ray

from medfed.pipeline.federate import federate
from medfed.runs.progress import Progress
from medfed.wire.audit_log import AuditLog, verify
from medfed.wire.weights import Weights, digest

from .two_tables import CASES, opened

pytestmark = [pytest.mark.slow, needs_ray]

ONE = ("simulation.threads=1", "rule.kind=scaffold", "train.local.kind=scaffold", "train.rounds=3")
TWO = (*ONE, "simulation.engine=ray", "simulation.workers=2")


class Cluster:
    """Two nodes with a core each; this process is of the first."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second = self.nodes.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return f"simulation.address={self.nodes.address}"

    def lose_second(self) -> None:
        self.nodes.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else other tests starve the workers
    both = Cluster()
    yield both
    both.nodes.shutdown()


class Watched(Progress):
    """Calls `once` in each round, at the first step that it is shown."""

    def __init__(self, once: Callable[[], None]) -> None:
        self.trained: set[str] = set()
        self._once, self._due = once, True

    def training_together(self, site: str, step: int, steps: int, turns: Sequence[str]) -> None:
        self.trained.add(site)
        if self._due:
            self._due = False
            self._once()

    def round(self, report: object) -> None:
        self._due = True


def trained(folder: Path, overrides: Sequence[str], once: Callable[[], None] = lambda: None) -> Weights:
    folder.mkdir()
    progress = Watched(once)
    run = replace(
        opened(folder, overrides), progress=progress, audit=AuditLog(folder / "run" / "audit.jsonl")
    )
    weights = federate(run).weights
    if any("engine" in one for one in overrides):
        assert progress.trained == set(CASES)
    return weights


def test_a_worker_killed_in_each_round_changes_no_bit(
    tmp_path: Path, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(tmp_path / "one", ONE)
    killed: list[int] = []

    def kill() -> None:
        pids = pids_of_workers()
        assert len(pids) == 2
        killed.append(pids[0])
        os.kill(pids[0], signal.SIGKILL)

    weights = trained(tmp_path / "two", (*TWO, cluster.address), kill)
    assert len(set(killed)) == 3
    assert digest(weights) == digest(expected)
    replaced = [record.message for record in caplog.records if "takes its place" in record.message]
    assert len(replaced) == 3
    assert re.match(r"the worker process of '\w+' on node \S+ \(\w{8}\) was ended", replaced[0])
    assert pids_of_workers() == []
    one, two = (verify(tmp_path / name / "run" / "audit.jsonl").lines for name in ("one", "two"))
    assert two >= one


def test_a_node_that_is_lost_changes_no_bit(
    tmp_path: Path, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(tmp_path / "one", ONE)
    lost: list[bool] = []

    def lose() -> None:
        if not lost:
            lost.append(True)
            cluster.lose_second()

    weights = trained(tmp_path / "two", (*TWO, cluster.address), lose)
    assert digest(weights) == digest(expected)
    texts = [record.message for record in caplog.records]
    assert len([one for one in texts if "takes its place" in one]) == 1
    assert len([one for one in texts if "has no free core for the new worker" in one]) == 1


def test_ray_of_this_machine_alone_gives_the_same_bits_with_any_number_of_workers(tmp_path: Path) -> None:
    import ray

    expected = digest(trained(tmp_path / "none", ONE))
    for workers in (1, 2):
        overrides = (*TWO, "simulation.address=local", f"simulation.workers={workers}")
        assert digest(trained(tmp_path / str(workers), overrides)) == expected
    assert not ray.is_initialized()


def pids_of_workers() -> list[int]:
    """Return the process ids of the actors in this test's own network that are alive."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            found += [int(folder.name)] * _is_worker(folder)
    return sorted(found)


def _is_worker(folder: Path) -> Any:
    try:
        own = (folder / "ns/net").readlink() == Path("/proc/self/ns/net").readlink()
        return own and (folder / "cmdline").read_bytes().startswith(b"ray::WorkerActor")
    except OSError:
        return False
