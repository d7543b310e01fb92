"""Processes of `medfed hub` and `medfed train --site` that tests can start, kill and restart.

They are forked from one process that has imported everything, which saves the time of importing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from broker_enrolment import free_ports

from medfed.deployment.approvals import STUDIES
from medfed.deployment.enrolment import enrol
from medfed.wire.weights import digest as weights_digest

PATIENCE_S = 240
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
PROCESSES = multiprocessing.get_context("forkserver")

PROCESSES.set_forkserver_preload(
    ["medfed.deployment.site_service", "medfed.deployment.hub_service", "medfed.cli.commands", "commands"]
)


def run(words: list[str], log: str, folder: str) -> None:
    """Run the command line in this process."""
    from medfed.cli import main

    os.chdir(folder)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(1)
    main(words)


@dataclass
class Across:
    """A coordinator and hospitals with folders of their own, set up by the commands that people type."""

    folder: Path
    data: Path
    study: str
    sites: tuple[str, ...] = ("north", "south")
    held_out: tuple[str, ...] = ()
    kind: str = "nats"
    running: dict[str, ForkServerProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ports = free_ports(2)
        self.folder.mkdir(parents=True, exist_ok=True)
        enrol.init(self.enrolment, "test", ["127.0.0.1"], *ports, listen="127.0.0.1")
        exchange = {"nats": "nats", "folder": f"folder, poll_s: 0.05, url: {self.folder / 'share'}"}[
            self.kind
        ]
        for site in (*self.sites, *self.held_out):
            credentials = self.folder / f"credentials-{site}"
            request, _ = enrol.request(credentials, site)
            enrol.sign(self.enrolment, request, self.folder / f"{site}.kit")
            enrol.accept(credentials, self.folder / f"{site}.kit")
            self.write_site(site, f"{{kind: {exchange}, credentials: {credentials}}}")
        names = f"sites: [{', '.join(self.sites)}]\nheld_out: [{', '.join(self.held_out)}]\n"
        more = f"exchange: {{kind: {exchange}}}\n" if self.kind == "folder" else ""
        (self.folder / "study.yaml").write_text(self.study + names + more)

    def write_site(self, site: str, exchange: str, more: str = "policy: {smallest_group: 1}") -> None:
        secret = self.folder / f"secret-{site}"
        # The same secret as in a simulation, so that tokens and splits are the same.
        secret.write_bytes(hashlib.sha256(f"medfed/simulated/1/{site}".encode()).digest())
        secret.chmod(0o600)
        (self.folder / f"{site}.yaml").write_text(
            f"name: {site}\ndata: {self.data / site}\nexchange: {exchange}\nsecret: secret-{site}\n"
            f"out: runs-{site}\naccelerator: cpu\n{more}\n"
        )

    @property
    def enrolment(self) -> Path:
        return self.folder / "enrolment"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def site_run(self, site: str) -> Path:
        # Beside the run folder is that of what was approved.
        folders = (self.folder / f"runs-{site}").iterdir()
        return next(path for path in folders if path.is_dir() and path.name != STUDIES)

    def start(self, party: str, accept: str = "") -> None:
        if party == "hub":
            words = ["hub", "study.yaml", "--enrolment", "enrolment", "--out", "run", "--resume"]
            words += ["--broker"] if self.kind == "nats" else []
        else:
            words = ["train", "--site", f"{party}.yaml", *(["--accept", accept] if accept else [])]
        log = str(self.folder / f"{party}.log")
        self.running[party] = PROCESSES.Process(target=run, args=(words, log, str(self.folder)))
        self.running[party].start()

    def kill(self, party: str) -> None:
        self.running[party].kill()
        self.running[party].join()

    def log(self, party: str) -> str:
        path = self.folder / f"{party}.log"
        return path.read_text() if path.exists() else ""

    def until(self, what, why: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not what():
            for name, process in self.running.items():
                assert process.exitcode in (None, 0, -9), (
                    f"{name} ended until {why}: {self.log(name)[-3000:]}"
                )
            assert time.monotonic() < end, f"waited in vain until {why}: {self.told()}"
            time.sleep(0.05)

    def round(self, number: int) -> bool:
        path = self.run / "rounds.jsonl"
        return path.exists() and f'"round":{number},' in path.read_text()

    def ended(self, *parties: str) -> None:
        for name in parties or tuple(self.running):
            self.until(lambda name=name: self.running[name].exitcode == 0, f"{name} ended")

    def told(self) -> str:
        return "\n".join(f"--- {name}: {self.log(name)[-1500:]}" for name in self.running)

    def final(self) -> str:
        return final(self.run)

    def end(self) -> None:
        for process in self.running.values():
            if process.exitcode is None:
                process.terminate()
                process.join(20)
            if process.exitcode is None:
                process.kill()
                process.join()


def final(run: Path) -> str:
    saved = torch.load(run / "checkpoints" / "federated.ckpt", weights_only=True)
    return weights_digest(saved["state_dict"])
