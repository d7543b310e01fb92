"""The workers of a simulation on a Ray cluster: many machines, or this one.

A worker is a Ray actor with a share of cores and GPUs, and works as a worker process does
(`worker_processes.py`). Before the first one starts, each node is asked for its versions and folders: a node
that differs would train something else, or fail in the first round. Ray (Apache-2.0) is the extra `ray`.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medfed.errors import RunError, StudyError
from medfed.exchange._worker_link import Connection
from medfed.federation._ray_connection import GROUPS, HubEnd, NodeModels, WorkerActor
from medfed.federation._worker_process import WorkerProcess

log = logging.getLogger("medfed.federation")

# How long an address has to accept a connection and to say that it is Ray, and a node to say what it has.
CONNECT_S, ANSWER_S, NODE_S = 5.0, 60.0, 120.0

# How long a worker has to begin, and how long cores may stay taken by one that has died.
BEGIN_S, FREED_S = 300.0, 10.0

# How often a worker is started before its error counts.
ATTEMPTS = 4

# The packages whose versions must be those of the process that has the hub.
PACKAGES = ("medfed", "torch", "pytorch-lightning", "monai", "numpy")


@dataclass(frozen=True)
class RayPlan:
    """Where the workers of a simulation run, and what they need there.

    address: `local` starts Ray on this machine, `auto` joins the one that runs here, host:port joins that
    one.  workers: how many.  threads: the cores of each.  gpus: `share` divides the cluster's GPUs among the
    workers, `none` trains on processors.  folders: what each node must have, by whose it is.  shared: a
    folder that must be the same one on all nodes, where sites write their checkpoints.
    """

    address: str
    workers: int
    threads: int
    gpus: Literal["share", "none"] = "share"
    folders: Mapping[str, Path] = field(default_factory=dict)
    shared: Path | None = None


@contextmanager
def ray_cluster(plan: RayPlan) -> Iterator[RayCluster]:
    """Yield the cluster that workers can be started on; Ray ends with the block if this began or joined it.

    Raises:
        StudyError: if nobody answers at the address, or who answers cannot be joined.
        RunError: if a node lacks a folder or has another version, or the cluster is too small.
    """
    joined = _join(plan)
    try:
        cluster = RayCluster(plan)
        cluster.check_nodes()
        yield cluster
    finally:
        if joined:
            import ray

            with _own_signals():
                ray.shutdown()


class RayCluster:
    """A joined cluster: `launch` starts a worker on it."""

    def __init__(self, plan: RayPlan) -> None:
        self._plan, self._models, self._launched = plan, NodeModels(), 0
        self._checked: set[str] = set()
        self._here = _examiner()(PACKAGES, {}, None)
        self._lock = threading.Lock()
        # The worker, by its number, that was last said to share cores.
        self._warned_at = 0

    def launch(self, module: str, threads: int | None) -> tuple[WorkerProcess, Connection]:
        """Start a worker where the cluster has room for it.

        Raises:
            RunError: if the cluster has no room for it, or a node that joined it cannot train.
        """
        with self._lock:
            self.check_nodes()
            self._launched += 1
            needs = self._needs(threads or 1)
            actor, node, process = self._begun(module, threads or 1, needs)
        end = HubEnd(actor, self._models)
        return _ActorProcess(actor, end, f"{process} on {node}", node), end

    # -- the nodes

    def check_nodes(self) -> None:
        """Refuse nodes that would train something else, or fail: each is asked once.

        Raises:
            RunError: naming the node, and what it lacks or has another version of.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        new = [one for one in _nodes(self._plan.threads) if one["NodeID"] not in self._checked]
        if not new:
            return
        folders = {whose: str(path) for whose, path in self._plan.folders.items()}
        ask = ray.remote(num_cpus=0, max_retries=0)(_examiner())
        with _marked(self._plan.shared) as mark:
            asked = [
                ask.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)
                ).remote(PACKAGES, folders, mark)
                for one in new
            ]
            for node, answer in zip(new, asked, strict=True):
                try:
                    self._check(node, ray.get(answer, timeout=NODE_S))
                except ray.exceptions.RayError as error:
                    if node["NodeID"] not in {one["NodeID"] for one in _nodes(0)}:
                        continue  # it has left the cluster meanwhile
                    raise RunError(
                        f"simulation.address: {_name(node)} of the Ray cluster did not say within "
                        f"{NODE_S:g} s what it has ({_line(error)}); see `ray status`"
                    ) from error
                self._checked.add(node["NodeID"])

    def _check(self, node: Mapping[str, Any], found: _Examined) -> None:
        versions, missing, same, processor = found
        name, (here, _, _, own_processor) = _name(node), self._here
        different = [
            f"{package} {versions[package] or 'not installed'} (here {here[package]})"
            for package in PACKAGES
            if versions[package] != here[package]
        ]
        if different:
            raise RunError(
                f"{name} of the Ray cluster has other versions than this machine: {', '.join(different)}; "
                "install the same ones on all nodes and start Ray there again"
            )
        if missing:
            where = ", ".join(f"{self._plan.folders[one]} (of {one})" for one in missing)
            raise RunError(
                f"{name} of the Ray cluster has no {where}; a worker on any node may train any hospital, so "
                "mount the data there under the same path"
            )
        if not same:
            raise RunError(
                f"{name} of the Ray cluster does not see the run's folder {self._plan.shared}; a hospital "
                "may go on at another node from its checkpoint there: choose --out on storage that all nodes "
                "share"
            )
        if processor != own_processor:
            log.warning(
                "%s of the Ray cluster has another processor (%s) than this machine (%s): sums of its "
                "hospitals may differ in their last bits, so a run repeats only with the same nodes",
                name,
                processor,
                own_processor,
            )

    # -- a worker

    def _needs(self, threads: int) -> dict[str, float]:
        """Return what a worker takes of the cluster; one that replaces another may share a core.

        Raises:
            RunError: if a first worker finds no room.
        """
        import ray

        needs = {"CPU": float(threads), "GPU": self._gpu_share()}
        end = time.monotonic() + FREED_S
        while True:
            free = ray.available_resources()
            short = [one for one, amount in needs.items() if free.get(one, 0.0) < amount]
            if not short:
                return needs
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        if self._launched <= self._plan.workers or "GPU" in short:
            what = ", ".join(f"{needs[one]:g} {one}" for one in needs if needs[one])
            has = ", ".join(f"{free.get(one, 0.0):g} {one}" for one in needs if needs[one])
            raise RunError(
                f"simulation.workers: worker {min(self._launched, self._plan.workers)} of "
                f"{self._plan.workers} needs {what}, and the Ray cluster has {has} free; choose fewer "
                "workers or threads, end what else runs on the cluster (`ray status`), or add nodes"
            )
        if self._warned_at != self._launched:
            log.warning(
                "the Ray cluster has no free core for the new worker, which shares those of another one"
            )
        self._warned_at = self._launched
        return {**needs, "CPU": 0.0}

    def _gpu_share(self) -> float:
        """Return how much of a GPU each worker gets: as many workers to each GPU, and one at most."""
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0)) if self._plan.gpus == "share" else 0
        return 1.0 / math.ceil(self._plan.workers / gpus) if gpus else 0.0

    def _begun(self, module: str, threads: int, needs: Mapping[str, float]) -> tuple[Any, str, int]:
        """Start a worker, again where Ray chose a node that it had not found to be lost."""
        import ray

        for left in reversed(range(ATTEMPTS)):
            try:
                return self._started(module, threads, needs)
            except ray.exceptions.RayError as error:
                if not left:
                    raise RunError(
                        f"simulation.engine: a worker could not begin on the Ray cluster: {_line(error)}"
                    ) from error
                log.debug("a Ray actor did not begin", exc_info=True)
                time.sleep(1)
                self.check_nodes()
                needs = self._needs(threads)
        raise AssertionError("the last attempt returned or raised")

    def _started(self, module: str, threads: int, needs: Mapping[str, float]) -> tuple[Any, str, int]:
        import ray

        environment = {"OMP_NUM_THREADS": str(threads)}
        if self._plan.gpus == "none":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        actor = (
            ray.remote(concurrency_groups=GROUPS)(WorkerActor)
            .options(
                num_cpus=needs["CPU"],
                num_gpus=needs["GPU"],
                runtime_env={"env_vars": environment},
                scheduling_strategy="SPREAD",
            )
            .remote(module, threads)
        )
        try:
            node, process = ray.get(actor.about.remote(), timeout=BEGIN_S)
        except ray.exceptions.GetTimeoutError as error:
            ray.kill(actor, no_restart=True)
            raise RunError(
                f"simulation.workers: no node of the Ray cluster began a worker of {needs['CPU']:g} CPU and "
                f"{needs['GPU']:g} GPU within {BEGIN_S:g} s; see `ray status` for what its nodes have free"
            ) from error
        names = {one["NodeID"]: _name(one) for one in ray.nodes()}
        return actor, names.get(node, "a node that has left"), process


class _ActorProcess:
    """A worker's actor, as a process that can be waited for."""

    def __init__(self, actor: Any, end: HubEnd, name: str, node: str) -> None:
        self._actor, self._end, self._name, self._node = actor, end, name, node

    @property
    def name(self) -> str:
        return self._name

    @property
    def runs(self) -> bool:
        return not self._end.ended.is_set()

    @property
    def how_ended(self) -> str:
        return f"on {self._node} was ended (perhaps as it ran out of memory), or its node was lost"

    def kill(self) -> None:
        self._end.shut()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._end.ended.wait(timeout_s)


# -- joining


def _join(plan: RayPlan) -> bool:
    """Join the cluster, or begin one; return False if this process has joined one already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what runs here is nobody else's business
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a FutureWarning for each start
    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else runs here starves what trains
    with _own_signals():
        import ray

        if ray.is_initialized():
            return False
        address = plan.address
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS", "auto")
        if address not in ("auto", "local"):
            _require_answer(address)
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "error",
            "configure_logging": False,
        }
        if address == "local":
            options |= {
                "num_cpus": plan.workers * plan.threads,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }
        try:
            ray.init(address=address, **options)
        except Exception as error:  # Ray raises bare ones, too: a node that began too slowly
            raise StudyError(_not_joined(address, error)) from error
    return True


def _not_joined(address: str, error: Exception) -> str:
    if address == "auto":
        return (
            f"simulation.address: auto: no Ray runs on this machine ({_line(error)}); start one with `ray "
            "start --head`, or join one with `ray start --address=...`, or write address: local"
        )
    return (
        f"simulation.address: {address}: this machine could not join Ray there ({_line(error)}); this "
        "machine must be a node of that cluster (`ray start --address=...`), with the same Ray and Python"
    )


def _require_answer(address: str) -> None:
    """Raise if no Ray answers at an address: `ray.init` would wait for minutes, then abort this process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        why = _unhealthy(address)
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise StudyError(
            f"simulation.address: {address}: no Ray answers there ({why}); start it with `ray start --head "
            "--port=...` and give the address that this prints, or write address: local"
        )


def _unhealthy(address: str) -> str:
    """Return what is wrong with the Ray at an address, '' if nothing."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        asked = subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=False, text=True)
    except subprocess.TimeoutExpired:
        return f"who answers there did not say within {ANSWER_S:g} s that it is Ray"
    return f"`ray health-check` ended with exit code {asked.returncode}" if asked.returncode else ""


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does in this process, which `import ray` and `ray.init` change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- what a node has

# Versions by package, whose folders are missing, whether the shared folder is the same, and the processor.
_Examined = tuple[dict[str, str], list[str], bool, str]


def _examiner() -> Callable[[tuple[str, ...], Mapping[str, str], tuple[str, str] | None], _Examined]:
    """Return a function that Ray sends as code and not by name: a node that lacks medfed can run it, too."""

    def examine(
        packages: tuple[str, ...], folders: Mapping[str, str], mark: tuple[str, str] | None
    ) -> _Examined:
        import hashlib
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec
        from pathlib import Path

        versions = {}
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = ""
        found = find_spec("medfed")
        if found is not None and found.submodule_search_locations and "medfed" in versions:
            # Two checkouts may have one version.
            root, sources = Path(found.submodule_search_locations[0]), hashlib.sha256()
            for source in sorted(root.rglob("*.py")):
                sources.update(source.relative_to(root).as_posix().encode() + source.read_bytes())
            versions["medfed"] += f" of sources {sources.hexdigest()[:12]}"
        missing = [whose for whose, path in folders.items() if not Path(path).exists()]
        same = mark is None or (Path(mark[0]).is_file() and Path(mark[0]).read_text() == mark[1])
        information = Path("/proc/cpuinfo")
        lines = information.read_text().splitlines() if information.exists() else []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return versions, missing, same, models[0] if models else "unknown"

    return examine


@contextmanager
def _marked(shared: Path | None) -> Iterator[tuple[str, str] | None]:
    """Yield a file in the shared folder, and its content, by which a node proves that it sees the folder."""
    if shared is None:
        yield None
        return
    path, content = shared / f".ray-{secrets.token_hex(8)}", secrets.token_hex(16)
    path.write_text(content)
    try:
        yield str(path.resolve()), content
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def _nodes(threads: int) -> list[dict[str, Any]]:
    """Return the nodes that live and have cores for a worker."""
    import ray

    return [one for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU", 0) >= threads]


def _name(node: Mapping[str, Any]) -> str:
    return f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _line(error: Exception) -> str:
    """Return the last line of an error that says something, as Ray's have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
