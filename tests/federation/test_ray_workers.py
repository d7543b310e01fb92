"""Workers on two Ray nodes of this machine: what is refused, and how workers are spread."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_network import needs_ray

from medfed.errors import RunError, StudyError
from medfed.federation import ray_workers
from medfed.federation.ray_workers import RayPlan, ray_cluster

pytestmark = [pytest.mark.slow, needs_ray]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each; this process is of the first."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_worker_niceness", "0")  # else other tests starve the workers
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes
        nodes.shutdown()


def plan(nodes: Any, **changes: Any) -> RayPlan:
    return RayPlan(**{"address": nodes.address, "workers": 2, "threads": 1, **changes})


def test_workers_are_spread_over_the_nodes_and_gone_in_the_end(cluster: Any, tmp_path: Path) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    # The module has no `main` that serves: each worker ends, and its end is told.
    with ray_cluster(plan(cluster, shared=tmp_path, folders={"site 'north'": tmp_path})) as joined:
        started = [joined.launch("medfed.pipeline.site_worker", 1) for _ in range(2)]
        nodes = {process.name.partition(" on ")[2] for process, _ in started}
        assert len(nodes) == 2
        assert all(process.runs for process, _ in started)
        process, link = started[0]
        process.kill()
        assert link.receive() is None
        assert process.wait(30)
        node = process.name.partition(" on ")[2]
        ended = f"on {node} was ended (perhaps as it ran out of memory), or its node was lost"
        assert process.how_ended == ended
        with pytest.raises(OSError, match="the worker has ended"):
            link.send(ray_workers_end())
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []  # what the nodes found there has been removed


def ray_workers_end() -> Any:
    from medfed.exchange._worker_link import WorkerEnds

    return WorkerEnds()


def test_a_node_that_lacks_a_folder_is_named_with_it(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "north"
    why = rf"node \S+ \(\w{{8}}\) of the Ray cluster has no {missing} \(of site 'north'\); a worker on"
    with pytest.raises(RunError, match=why), ray_cluster(plan(cluster, folders={"site 'north'": missing})):
        pass
    # A folder of the same name that is another one holds no file by which it is recognised.
    with monkeypatch.context() as patched:
        patched.setattr(ray_workers, "_marked", unmarked)
        with (
            pytest.raises(RunError, match=r"node \S+ \(\w{8}\) of the Ray cluster does not see the run's"),
            ray_cluster(plan(cluster, shared=tmp_path)),
        ):
            pass


class unmarked:
    def __init__(self, shared: Path) -> None:
        self._mark = str(shared / "none"), "x"

    def __enter__(self) -> tuple[str, str]:
        return self._mark

    def __exit__(self, *raised: object) -> None:
        pass


def test_a_node_with_another_version_is_named_with_both(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "PACKAGES", ("medfed", "no-such-package", "numpy"))
    examine = ray_workers._examiner()
    versions, *rest = examine(("medfed", "numpy"), {}, None)
    here = {**versions, "no-such-package": "2.0"}
    monkeypatch.setattr(ray_workers.RayCluster, "check_nodes", with_versions(here, rest))
    why = (
        r"node \S+ \(\w{8}\) of the Ray cluster has other versions than this machine: no-such-package not "
        r"installed \(here 2\.0\); install the same ones on all nodes"
    )
    with pytest.raises(RunError, match=why), ray_cluster(plan(cluster)):
        pass


def with_versions(here: dict[str, str], rest: list[Any]) -> Any:
    check = ray_workers.RayCluster.check_nodes

    def check_nodes(self: Any) -> None:
        self._here = (here, *rest)
        check(self)

    return check_nodes


def test_a_change_of_medfed_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for text in ("x = 1\n", "x = 1\n", "x = 2\n"):
        folder = tmp_path / f"checkout{len(digests)}"
        (folder / "medfed").mkdir(parents=True)
        (folder / "medfed" / "__init__.py").write_text(text)
        with monkeypatch.context() as patched:
            patched.delitem(sys.modules, "medfed")
            patched.setattr(sys, "path", [str(folder), *sys.path])
            digests.append(ray_workers._examiner()(("medfed",), {}, None)[0]["medfed"])
    assert digests[0] == digests[1] != digests[2]


def test_more_workers_than_cores_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "FREED_S", 0.5)
    why = r"simulation\.workers: worker 3 of 3 needs 1 CPU, and the Ray cluster has 0 CPU free; choose"
    with ray_cluster(plan(cluster, workers=3)) as joined:
        started = [joined.launch("medfed.pipeline.site_worker", 1) for _ in range(2)]
        monkeypatch.setattr(ray_workers, "FREED_S", 10.0)  # until Ray has counted both
        with pytest.raises(RunError, match=why):
            joined.launch("medfed.pipeline.site_worker", 1)
        for process, _ in started:
            process.kill()


def test_an_address_that_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    with socket.socket() as silent:  # it is bound, listens, and says nothing
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        why = rf"simulation\.address: {address}: no Ray answers there \(.*\); start it with `ray start --head"
        with pytest.raises(StudyError, match=why), ray_cluster(RayPlan(address, 1, 1)):
            pass
        silent.listen()
        monkeypatch.setattr(ray_workers, "ANSWER_S", 10.0)
        with pytest.raises(StudyError, match=why), ray_cluster(RayPlan(address, 1, 1)):
            pass
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not ray.is_initialized()


def test_gpus_are_divided_so_that_none_has_more_workers_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def share(workers: int, gpus: int, how: Any = "share") -> float:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus)})
        return ray_workers.RayCluster(RayPlan("local", workers, 1, how))._gpu_share()

    assert share(4, 1) == 0.25
    assert share(3, 2) == 0.5  # two workers on one GPU, one on the other
    assert share(1, 4) == 1.0
    assert share(2, 0) == 0.0
    assert share(4, 1, "none") == 0.0
    assert os.environ.get("RAY_ADDRESS") is None
