"""Measure a round without training in a network that others lead: its real server and clients, on loopback.

    make flower
    python benchmarks/networks.py --network flower --megabytes 40 --rounds 4
    pip install -c constraints.txt -e '.[nvflare]'
    python benchmarks/networks.py --network nvflare --megabytes 40 --rounds 4
    python benchmarks/networks.py --network nvflare --megabytes 4 --rounds 3  # short: a minute

Two sites hand back an update of the model's size as soon as they have the model. Prints a row of a table: the
median seconds from one round's model to the next as the first site sees them (its answer, the network's
FedAvg, Flower's evaluation of the merged model by both sites, the next model), without the first round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SITES = ("north", "south")
# The parts that start real networks are those of the tests.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "exchange")]


def site(name: str, network: str, where: str, folder: Path, rounds: int) -> None:
    """Be a site without training, and write when each round's model came."""
    import torch

    from medfed.exchange.flower import Flower
    from medfed.exchange.nvflare import Nvflare
    from medfed.wire.update import Update
    from medfed.wire.weights import Difference

    exchange: Any = (
        Flower(rounds=rounds, handoff=where) if network == "flower" else Nvflare(rounds=rounds, profile=where)
    )
    side, came = exchange.open_site("", name, folder), []
    side.max_wait_s = 300.0
    for round in range(rounds):
        model = side.fetch(name, round)
        came.append(time.time())
        local = {tensor: value + torch.rand(()) for tensor, value in model.weights.items()}
        side.send(Update(name, round + 1, Difference(local, model.weights), 12))
    side.fetch(name, rounds)
    side.close()
    (folder / "came.json").write_text(json.dumps([*came, time.time()]))


def measure(network: str, megabytes: float, rounds: int, folder: Path) -> Sequence[float]:
    """Run a network and return the seconds of each round."""
    from flower_network import flower_network, write_app
    from nvflare_network import nvflare_network, write_job, write_profile

    start, out = folder / "start.npz", folder / "final.npz"
    random = np.random.default_rng(0)
    count = max(1, round(megabytes / 4))
    np.savez(start, **{f"layer{i}": random.random(1_000_000, np.float32) for i in range(count)})
    opened = flower_network if network == "flower" else nvflare_network
    with opened(folder, SITES) as running:
        sites = []
        for name in SITES:
            own = folder / name
            own.mkdir()
            where = folder / f"{name}-handoff" if network == "flower" else write_profile(folder, name)
            command = [sys.executable, __file__, "--site", name, str(where), str(own)]
            command += ["--network", network, "--rounds", str(rounds)]
            sites.append(
                subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
            )
        if network == "flower":
            running.run(write_app(folder / "app"), rounds=rounds, start=start, out=out)
        else:
            running.run(write_job(folder / "job", SITES, rounds, start, out))
        for one in sites:
            one.wait(120)
    came = json.loads((folder / SITES[0] / "came.json").read_text())
    return np.diff(came).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("flower", "nvflare"), required=True)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--site", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.site:
        name, where, folder = given.site
        return site(name, given.network, where, Path(folder), given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(given.network, given.megabytes, given.rounds, Path(folder))
    load = os.getloadavg()[0]
    print("| network | MB | sites | load | median s per round | each round after the first |")
    print("|---|---|---|---|---|---|")
    each = ", ".join(f"{one:.1f}" for one in seconds[1:])
    median = statistics.median(seconds[1:])
    return print(f"| {given.network} | {given.megabytes:g} | 2 | {load:.1f} | {median:.1f} | {each} |")


if __name__ == "__main__":
    main()
