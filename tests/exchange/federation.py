"""A federation of real processes that tests can start, kill, stop and resume."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import party

PATIENCE_S = 120

# Processes are forked from one that has imported everything, so each starts at once and can be killed.
# (Python 3.11's fork server does not inherit sys.path, so the environment gives the path of `party`.)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
).rstrip(":")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["party"])


@dataclass
class Federation:
    """The processes of a hub and its sites; `exchange_of` returns each party's exchange settings."""

    folder: Path
    exchange_of: Callable[[str], dict[str, Any]]
    sites: tuple[str, ...] = ("north", "south")
    settings: dict[str, Any] = field(default_factory=dict)
    running: dict[str, ForkServerProcess] = field(default_factory=dict)

    def start(self, *parties: str) -> None:
        for party_name in parties:
            party_folder = self.folder / party_name
            party_folder.mkdir(parents=True, exist_ok=True)
            given = {
                "rounds": 3,
                "width": 64,
                **self.settings,
                "sites": self.sites,
                "site": party_name,
                "folder": str(party_folder),
                "exchange": self.exchange_of(party_name),
            }
            (party_folder / "settings.json").write_text(json.dumps(given))
            kind = "hub" if party_name == "hub" else "site"
            self.running[party_name] = PROCESSES.Process(
                target=party.run, args=(kind, str(party_folder / "settings.json"))
            )
            self.running[party_name].start()

    def kill(self, party: str) -> None:
        self.running[party].kill()
        self.running[party].join()

    def stop(self, party: str) -> None:
        self._signal(party, signal.SIGSTOP)

    def go_on(self, party: str) -> None:
        self._signal(party, signal.SIGCONT)

    def _signal(self, party: str, number: int) -> None:
        pid = self.running[party].pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):  # it ended before the signal came
            os.kill(pid, number)

    def log(self, party: str) -> str:
        path = self.folder / party / "log"
        return path.read_text() if path.exists() else ""

    def rounds(self) -> list[dict[str, Any]]:
        path = self.folder / "hub" / "rounds"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, what: Callable[[], Any], why: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not what():
            self.alive(why)
            assert time.monotonic() < end, f"waited in vain until {why}: {self.last_outputs()}"
            time.sleep(0.02)

    def alive(self, why: str) -> None:
        for name, process in self.running.items():
            if process.exitcode not in (None, 0, -signal.SIGKILL):
                raise AssertionError(
                    f"{name} ended with {process.exitcode} until {why}: {self.log(name)[-2000:]}"
                )

    def last_outputs(self) -> str:
        return "\n".join(f"--- {name}: {self.log(name)[-1500:]}" for name in self.running)

    def digest(self) -> str:
        """Wait for the end of the study and return the final model's digest."""
        self.until(lambda: self.running["hub"].exitcode == 0, "the hub ended")
        return (self.folder / "hub" / "digest").read_text()

    def ended(self, *parties: str) -> None:
        for name in parties:
            self.until(lambda name=name: self.running[name].exitcode == 0, f"{name} ended")

    def end(self) -> None:
        for name, process in self.running.items():
            if process.exitcode is None:
                self.go_on(name)
                process.kill()
            process.join()


def over(url: str) -> Callable[[str], dict[str, Any]]:
    return lambda party: {"kind": "folder", "url": url, "poll_s": 0.05}


def federations(start: Callable[..., Federation]) -> Iterator[Callable[..., Federation]]:
    """Yield `start`, and stop the started processes at the end."""
    made: list[Federation] = []

    def make(*arguments: Any, **settings: Any) -> Federation:
        made.append(start(*arguments, **settings))
        return made[-1]

    yield make
    for federation in made:
        federation.end()
