"""A real Flower network on loopback: SuperLink, SuperNodes, and trainers in medfed's own environment.

Flower has an environment of its own (`make flower`), because it wants older packages than constraints.txt.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from broker_enrolment import free_ports

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("MEDFED_FLOWER", ROOT / ".venv-flower"))

PROJECT = """
[project]
name = "network"
version = "1.0.0"
description = "A network that others lead."
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "leader"
[tool.flwr.app.components]
serverapp = "network.server_app:app"
clientapp = "network.client_app:app"
[tool.flwr.app.config]
rounds = 3
start = ""
out = ""
"""

SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    with np.load(config["start"]) as start:
        arrays = ArrayRecord({name: Array(start[name]) for name in start.files})
    result = FedAvg().start(grid=grid, initial_arrays=arrays, num_rounds=config["rounds"], timeout=240)
    np.savez(config["out"], **{name: array.numpy() for name, array in result.arrays.items()})
"""

CLIENT = """
from medfed.exchange.flower import client_app

app = client_app()
"""


def has_flower() -> bool:
    return (ENVIRONMENT / "bin" / "flower-superlink").exists()


def write_app(folder: Path) -> Path:
    """Write the Flower app that a network's leader would run."""
    (folder / "network").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "network" / "__init__.py").write_text("")
    (folder / "network" / "server_app.py").write_text(SERVER)
    (folder / "network" / "client_app.py").write_text(CLIENT)
    return folder


class FlowerNetwork:
    """A SuperLink and a SuperNode per site, until `stop`."""

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self.folder, self._processes = folder, []
        self.port, *ports = free_ports(1 + len(sites))
        home = folder / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "127.0.0.1:{self.port}"\n'
            "insecure = true\n"
        )
        self.environment = {
            **os.environ,
            "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        self._start(
            "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        _wait_for_port(self.port)
        for site, port in zip(sites, ports, strict=True):
            handoff = folder / f"{site}-handoff"
            self._start(
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}",
                "--host", "127.0.0.1", "--port", str(port), "--node-config", f'medfed-folder="{handoff}"',
            )  # fmt: skip

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}-{len(self._processes)}.log").open("w") as log:
            process = subprocess.Popen(
                [ENVIRONMENT / "bin" / command[0], *command[1:]],
                stdout=log, stderr=log, env=self.environment, cwd=self.folder,
            )  # fmt: skip
        self._processes.append(process)

    def run(self, app: Path, **config: object) -> str:
        """Run an app to its end and return what it logged."""
        words = " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in config.items())
        done = subprocess.run(
            [ENVIRONMENT / "bin" / "flwr", "run", str(app), "local", "--stream", "--run-config", words],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=420, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(30)


def _wait_for_port(port: int, timeout_s: float = 60) -> None:
    began = time.monotonic()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() - began > timeout_s:
                raise
            time.sleep(0.2)
        else:
            return


@contextmanager
def flower_network(folder: Path, sites: Sequence[str]) -> Iterator[FlowerNetwork]:
    network = FlowerNetwork(folder, sites)
    try:
        yield network
    finally:
        network.stop()


def start_trainer(script: Path, *words: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a hospital's trainer, in this environment."""
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, str(script), *words], stdout=file, stderr=file,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
