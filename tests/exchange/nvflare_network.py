"""A real NVFlare network on loopback, provisioned by NVFlare's own proof of concept: server, clients, a job.

python nvflare_network.py KIT JOB CLIENTS     runs a job to its end as the leader (called by `run`)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from broker_enrolment import free_ports

ROOT = Path(__file__).parents[2]

ATTACH_ID = "medfed"

# The leader's own code, beside the job: FedAvg as it is, and then the merged model to every site.
CONTROLLER = """
import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg


class FedAvgThenEvaluate(FedAvg):
    def __init__(self, start, out, **kwargs):
        with np.load(start) as arrays:
            super().__init__(model={name: arrays[name] for name in arrays.files}, persistor_id="", **kwargs)
        self.out, self.merged = out, None

    def save_model(self, model):
        self.merged = {name: np.asarray(value) for name, value in model.params.items()}

    def run(self):
        super().run()
        np.savez(self.out, **self.merged)
        replies = self.send_model_and_wait(task_name="validate", data=FLModel(params=self.merged))
        for reply in replies:
            self.info(f"scores of the merged model: {reply.metrics}")
"""


def has_nvflare() -> bool:
    return find_spec("nvflare") is not None


def write_job(folder: Path, sites: Sequence[str], rounds: int, start: Path, out: Path) -> Path:
    """Write a job whose sites wait for an attached trainer."""
    workflow = {
        "id": "fedavg",
        "path": "network_job.FedAvgThenEvaluate",
        "args": {"num_clients": len(sites), "num_rounds": rounds, "start": str(start), "out": str(out)},
    }
    executor = {
        "path": "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor",
        "args": {"execution_mode": "attach", "attach_id": ATTACH_ID, "params_exchange_format": "numpy"},
    }
    client = {"executors": [{"tasks": ["train", "validate"], "executor": executor}]}
    common = {"format_version": 2, "task_data_filters": [], "task_result_filters": [], "components": []}
    files = {
        "meta.json": {"name": "network", "min_clients": len(sites), "deploy_map": {"app": ["@ALL"]}},
        "app/config/config_fed_server.json": {**common, "workflows": [workflow]},
        "app/config/config_fed_client.json": {**common, **client},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "app/custom").mkdir()
    (folder / "app/custom/network_job.py").write_text(CONTROLLER)
    return folder


def write_profile(folder: Path, site: str) -> Path:
    """Write the profile by which a site's trainer attaches, through a folder that both share."""
    path = folder / f"{site}-profile.json"
    profile = {
        "schema_version": 1, "execution_mode": "attach", "attach_id": ATTACH_ID, "site_name": site,
        "rendezvous_dir": str(folder / f"{site}-attach"), "job_wait_timeout": 240,
    }  # fmt: skip
    path.write_text(json.dumps(profile))
    return path


class NvflareNetwork:
    """A server and a client per site, until `stop`."""

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self.folder, self.sites = folder, sites
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        }
        code = (
            "from nvflare.tool.poc.poc_commands import prepare_poc_provision\n"
            f"prepare_poc_provision({list(sites)!r}, {len(sites)}, {str(folder / 'poc')!r}, '')"
        )
        subprocess.run([sys.executable, "-c", code], env=self.environment, check=True, capture_output=True)
        self.kits = folder / "poc" / "example_project" / "prod_00"
        (port,) = free_ports(1)
        for path in self.kits.glob("*/startup/fed_*.json"):
            text = path.read_text().replace("server:8002", f"localhost:{port}")
            path.write_text(text.replace("localhost:8002", f"localhost:{port}").replace("8002", str(port)))
        self._start("server", "server.server_train", "fed_server.json", "config_folder=config")
        for site in sites:
            root = folder / f"{site}-attach"
            root.mkdir(mode=0o700)
            attach = {"client_api_attach": {"scheme": "shared-file", "resources": {"root_dir": str(root)}}}
            (self.kits / site / "local" / "comm_config.json").write_text(json.dumps(attach))
            self._start(site, "client.client_train", "fed_client.json", f"uid={site}", "config_folder=config")

    def _start(self, party: str, module: str, config: str, *settings: str) -> None:
        command = [
            sys.executable,
            "-u",
            "-m",
            f"nvflare.private.fed.app.{module}",
            "-m",
            str(self.kits / party),
        ]
        command += ["-s", config, "--set", "secure_train=true", "org=nvidia", *settings]
        with (self.folder / f"nvflare-{party}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, cwd=self.kits / party,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)

    def run(self, job: Path, timeout_s: float = 300) -> None:
        """Submit a job as the leader and wait for its end."""
        command = [
            sys.executable,
            __file__,
            str(self.kits / "admin@nvidia.com"),
            str(job),
            str(len(self.sites)),
        ]
        subprocess.run(
            command, env=self.environment, check=True, timeout=timeout_s, cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        """End the processes that this network started, with the jobs that they started."""
        for process in self._processes:
            os.killpg(process.pid, 15)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(20)


@contextmanager
def nvflare_network(folder: Path, sites: Sequence[str]) -> Iterator[NvflareNetwork]:
    network = NvflareNetwork(folder, sites)
    try:
        yield network
    finally:
        network.stop()


def submit(kit: str, job: str, clients: int) -> Mapping[str, Any]:
    """Submit a job once all clients have connected, and return what the server says of it at its end."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    deadline = time.monotonic() + 90
    while True:
        try:
            session = new_secure_session("admin@nvidia.com", kit)
            if len(session.get_connected_client_list()) >= clients:
                break
            session.close()
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)
    number = session.submit_job(job)
    session.monitor_job(number, timeout=240, poll_interval=1)
    meta: Mapping[str, Any] = session.get_job_meta(number)
    session.close()
    return meta


if __name__ == "__main__":
    print(submit(sys.argv[1], sys.argv[2], int(sys.argv[3])))
