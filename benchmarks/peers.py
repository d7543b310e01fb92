"""Compare a simulation without real training with Flower's on Ray and with pfl-research's, in one run.

    python benchmarks/peers.py [--sites 10 100] [--millions 10]
    python benchmarks/peers.py --short  # 4 sites of a million parameters: some minutes, mostly installing

Each peer is installed into an environment of its own, which is thrown away afterwards (`--keep FOLDER` keeps
it for the next call) and uses the torch of the one that calls it. Where that fails, for example because no
package index can be reached, its row says so. All do what simulation.py does: each site trains one tiny batch
a round by SGD on linear layers, and the server averages. Beier et al., Flower, arXiv:2007.14390; Granqvist et
al., pfl-research, NeurIPS 2024, arXiv:2404.06430. Flower runs as many clients at once as there are cores.

A round's seconds are the least of those after the first. Memory is the peak of what the processes of each use
together, shared pages counted once (PSS), looked at five times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from comparison import Comparison, print_rows

PEERS = {"flower": "flwr[simulation]==1.42.0", "pfl": "pfl==0.6.0"}
NAMES = {"flower": "Flower 1.42 on Ray", "pfl": "pfl-research 0.6"}
ROUNDS = 4
# How long a peer may take to be installed, and for all rounds of a size.
INSTALL_S, RUN_S = 600, 900


class MissingPeerError(Exception):
    """A peer could not be installed or run; the last line of its output says why."""


def environment(folder: Path, peer: str) -> Path:
    """Make a peer's environment, and return its Python.

    Raises:
        MissingPeerError: if its packages cannot be installed.
    """
    python = folder / peer / "bin" / "python"
    done = folder / peer / "installed"
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", folder / peer], check=True)
    query = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    own = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
    (own / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    # Else pip takes the newest torch instead of the one that is here.
    torch = f"torch=={version('torch').split('+')[0]}"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--retries", "1", PEERS[peer], torch]
    _run(install, INSTALL_S)
    done.touch()
    return python


def _run(command: list[Any], limit_s: float) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise MissingPeerError(f"not done after {limit_s:g} s") from None
    if found.returncode:
        lines = [line for line in (found.stdout + found.stderr).splitlines() if line.strip()]
        raise MissingPeerError(lines[-1] if lines else f"it ended with {found.returncode}")
    return found.stdout


def pfl(sites: int, millions: float) -> list[float]:
    """Return the time at the end of each round of pfl-research's simulation."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel
    from simulation import BATCH, inputs, network

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(millions)

        def loss(self, batch: Any, eval: bool = False) -> Any:
            return self.network(batch).square().mean()

        def metrics(self, batch: Any, eval: bool = True) -> dict[str, Any]:
            return {}

    ended: list[float] = []

    class Clock(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            ended.append(time.time())
            return False, Metrics()

    net = Net()
    central = torch.optim.SGD(net.parameters(), lr=1.0)
    model = PyTorchModel(net, torch.optim.SGD, central)
    users = [str(number) for number in range(sites)]
    batch = inputs(net.network).numpy()
    data = FederatedDataset.from_slices(
        {user: [batch] for user in users}, get_user_sampler("minimize_reuse", users)
    )
    backend = SimulatedBackend(training_data=data, val_data=None, postprocessors=[])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=ROUNDS,
            evaluation_frequency=10**6,
            train_cohort_size=sites,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.01, local_batch_size=BATCH),
        callbacks=[Clock()],
    )
    return ended


def flower(sites: int, millions: float) -> list[float]:
    """Return the time at the end of each round of Flower's simulation."""
    import torch
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation
    from simulation import BATCH, inputs, network

    class Client(NumPyClient):  # type: ignore[misc]
        def fit(self, parameters: Any, config: Any) -> tuple[list[Any], int, dict[str, Any]]:
            net = network(millions)
            with torch.no_grad():
                for own, value in zip(net.parameters(), parameters, strict=True):
                    own.copy_(torch.from_numpy(value))
            optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
            net(inputs(net)).square().mean().backward()
            optimiser.step()
            return [value.detach().numpy() for value in net.parameters()], BATCH, {}

    ended: list[float] = []

    class Clock(FedAvg):  # type: ignore[misc]
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            if failures:
                raise SystemExit(f"{len(failures)} clients failed: {failures[0]}")
            merged = super().aggregate_fit(server_round, results, failures)
            ended.append(time.time())
            return merged

    def server(context: Any) -> Any:
        first = ndarrays_to_parameters([value.detach().numpy() for value in network(millions).parameters()])
        strategy = Clock(
            fraction_evaluate=0.0,
            min_fit_clients=sites,
            min_available_clients=sites,
            initial_parameters=first,
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))

    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=lambda context: Client().to_client()),
        num_supernodes=sites,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return ended


def ours(sites: int, millions: float) -> list[float]:
    """Return the time at the end of each round of medfed's simulation."""
    from simulation import federation

    ended = [time.time()]
    for seconds, _ in federation(sites, millions, ROUNDS, sites):
        ended.append(ended[-1] + seconds)
    return ended[1:]


WAYS = {"pfl": pfl, "flower": flower, "medfed": ours}


def pss_mb(pid: int) -> float:
    """Return the memory of a process and its children, shared pages counted once."""
    from soak import children

    total = 0
    for one in children(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measured(python: Path | str, way: str, sites: int, millions: float) -> tuple[float, float]:
    """Return the least seconds of a round after the first, and the peak memory in MB.

    Raises:
        MissingPeerError: if the run fails or takes too long.
    """
    command = [str(python), __file__, "--one", way, str(sites), str(millions)]
    began, peak = time.monotonic(), 0.0
    env = {**os.environ, "RAY_DEDUP_LOGS": "0", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        try:
            while process.poll() is None:
                if time.monotonic() - began > RUN_S:
                    raise MissingPeerError(f"not done after {RUN_S} s")
                peak = max(peak, pss_mb(process.pid))
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        if process.returncode:
            log.seek(0)
            said = [line for line in log.read().splitlines() if line.strip()]
            raise MissingPeerError(said[-1] if said else f"it ended with {process.returncode}")
    ended = json.loads(lines[-1])
    return min(after - before for before, after in pairwise(ended)), peak


def compare(
    short: bool, sites: tuple[int, ...] = (10, 100), millions: float = 10.0, keep: Path | None = None
) -> Iterator[Comparison]:
    """Yield the rows of the table of `make bench`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        for count in (4,) if short else sites:
            size = 1.0 if short else millions
            seconds, peak = measured(sys.executable, "medfed", count, size)
            for peer in PEERS:
                what, note = f"round of {count} sites, {size:g}M parameters", ""
                try:
                    python = environment(keep or Path(made), peer)
                    theirs, their_peak = measured(python, peer, count, size)
                except MissingPeerError as error:
                    yield Comparison(what, seconds, "s", NAMES[peer], note=f"not measured: {error}"[:300])
                    continue
                note = f"peak memory {peak:.0f} MB, theirs {their_peak:.0f} MB"
                yield Comparison(what, seconds, "s", NAMES[peer], theirs, 1.0, note)


def main() -> None:
    """Print the table, or measure one way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--millions", type=float, default=10.0, help="parameters of the model, in millions")
    parser.add_argument("--keep", type=Path, help="where the environments are made and kept")
    parser.add_argument("--short", action="store_true", help="4 sites of a million parameters")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, sites, millions = given.one
        ended = WAYS[way](int(sites), float(millions))
        print(json.dumps(ended), flush=True)
        return
    print_rows(compare(given.short, tuple(given.sites), given.millions, given.keep))


if __name__ == "__main__":
    main()
