"""Run the three-machine tutorial's commands, as written, on three "hosts" of this machine.

    python benchmarks/three_hosts.py [--keep FOLDER]  # minutes, with no shorter form

A host is a folder with a home of its own, and the broker listens on loopback. The script runs every block
that the page marks with `<!-- run on HOST ... -->` in that host's folder, in page order, and writes every
`<!-- file NAME on HOST -->`. It fills in what a reader fills in (the hub's address and ports, the fingerprint
and the digest), passes on what people mail, and repeats north's steps for south, as the page says. It prints
each command with its host and its seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorials" / "three-machines.md"
HUB, SITES = "hub", ("north", "south")
TIMEOUT_S = 900

MARKED = re.compile(
    r"<!-- (?:run on (?P<host>\w+)(?:, (?P<how>[^>]*))?|file (?P<file>\S+) on (?P<place>\w+)) -->\n"
    r"(?P<block>(?:    .*\n|\n)+)"
)


@dataclass(frozen=True)
class Step:
    """A marked block of the page: commands to run on a host, or the text of a file to write there."""

    host: str
    text: str
    how: str = ""
    file: str = ""

    def on(self, site: str) -> Step:
        """Return the same step for another site; the page shows only north's."""
        host = site if self.host in SITES else self.host
        return replace(
            self, host=host, text=self.text.replace("north", site), how=self.how.replace("north", site)
        )


def read_steps(page: str) -> list[Step]:
    """Return the marked blocks of the page, in order."""
    steps = []
    for match in MARKED.finditer(page):
        text = "\n".join(line[4:] for line in match["block"].rstrip().splitlines())
        steps.append(Step(match["host"] or match["place"], text, match["how"] or "", match["file"] or ""))
    return steps


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Hosts:
    """The three hosts, their running processes, and what people read to each other."""

    folder: Path
    port: int = field(default_factory=free_port)
    websocket_port: int = field(default_factory=free_port)
    fingerprint: str = ""
    digest: str = ""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def create(self) -> None:
        """Create the hosts' folders, the sites' images, and the installed program."""
        sys.path.insert(0, str(ROOT / "tests"))
        from hospitals import make_hospital

        for host in (HUB, *SITES):
            (self.folder / host).mkdir()
        for site in SITES:
            shutil.move(make_hospital(self.folder / "made" / site), self.folder / site / "images")
        program = self.folder / "bin" / "medfed"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m medfed.cli "$@"\n')
        program.chmod(0o755)

    def fill_in(self, text: str) -> str:
        """Return a block with the values that its reader fills in."""
        ports = f"--port {self.port} --websocket-port {self.websocket_port}"
        for written, value in (
            ("--host hub.example.org", f"--host localhost {ports}"),
            ("hub.example.org/4222", f"localhost/{self.port}"),
            ("1a2b 3c4d ...", self.fingerprint),
            ("1a2b3c4d5e6f...", self.digest),
        ):
            text = text.replace(written, value)
        return text

    def start(self, host: str, text: str, output: int) -> subprocess.Popen[bytes]:
        """Start commands in a host's folder."""
        folder = self.folder / host
        return subprocess.Popen(
            ["bash", "-c", text if "<" in text else f"exec {text}"],
            cwd=folder,
            env={
                **os.environ,
                "HOME": str(folder),
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def perform(self, step: Step) -> str:
        """Write a step's file, or run its commands and return their output."""
        if step.file:
            (self.folder / step.host / step.file).write_text(step.text + "\n")
            return ""
        mailed = re.search(r"mailed (\S+)", step.how)
        if mailed:
            sender = HUB if step.host != HUB else next(site for site in SITES if site in mailed[1])
            shutil.copy(self.folder / sender / mailed[1], self.folder / step.host)
        text = self.fill_in(step.text)
        if "background" in step.how:
            print(f"{step.host:6} started   {text}", flush=True)
            with (self.folder / f"{step.host}.log").open("ab") as log:
                self.running[step.host] = self.start(step.host, text, log.fileno())
            return ""
        if "all is over" in step.how:
            self.wait_for_all()
        return self.run(step, text, attempts=60 if "once the hub" in step.how else 1)

    def run(self, step: Step, text: str, attempts: int) -> str:
        """Run commands until they end as the page expects, and return their output."""
        expected = int((re.search(r"expecting (\d)", step.how) or [0, 0])[1])
        for _ in range(attempts):
            began = time.monotonic()
            process = self.start(step.host, text, subprocess.PIPE)
            output = process.communicate(b"y\n", TIMEOUT_S)[0].decode()
            if process.returncode == expected:
                print(f"{step.host:6} {time.monotonic() - began:6.1f} s  {text}", flush=True)
                return output
            time.sleep(1)
        raise SystemExit(
            f"{step.host}: {text}\nended with {process.returncode}, expected {expected}:\n{output}"
        )

    def wait_for_all(self) -> None:
        """Wait until hub and sites have ended by themselves, without an error."""
        for host, process in self.running.items():
            if process.wait(TIMEOUT_S) != 0:
                raise SystemExit(f"{host} failed:\n{(self.folder / f'{host}.log').read_text()}")

    def stop(self) -> None:
        """Stop the processes that still run."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def follow(page: str, hosts: Hosts) -> None:
    """Perform all steps of the page; those that wait for the hub follow its start."""
    waiting: list[Step] = []
    for step in read_steps(page):
        if "once the hub" in step.how:
            waiting.append(step)
            continue
        concerns_sites = step.host in SITES or (not step.file and "north" in step.text)
        for shown in [step.on(site) for site in SITES] if concerns_sites else [step]:
            output = hosts.perform(shown)
            if "enrol init" in shown.text:
                hosts.fingerprint = output.strip().splitlines()[-1].strip()
            if "train --site" in shown.text and "--accept" not in shown.text:
                description = next((hosts.folder / shown.host / "runs").glob("*.txt")).read_text()
                digest = re.search(r"Digest +([0-9a-f]{64})", description)
                if digest is None:
                    raise SystemExit(f"{shown.host}: the page about the study shows no digest:\n{output}")
                hosts.digest = digest[1]
        if step.host == HUB and "background" in step.how:
            for late in waiting:
                if "INFO" not in hosts.perform(late):
                    raise SystemExit("the broker did not answer with INFO")


def check_reports(folder: Path) -> None:
    """Check that the hub and both sites have written their report."""
    for host in (HUB, *SITES):
        reports = sorted((folder / host / "runs").glob("lesions*/report.html"))
        if not reports:
            raise SystemExit(f"{host} wrote no report")
        print(f"{host:6} report {reports[0].relative_to(folder)}, {reports[0].stat().st_size} bytes")


def main() -> None:
    """Follow the page from the first command to the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a new folder for the hosts, kept afterwards")
    keep = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="medfed-hosts-")) if keep is None else keep.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    hosts = Hosts(folder)
    try:
        hosts.create()
        follow(PAGE.read_text(), hosts)
        check_reports(folder)
        print((folder / "hub.log").read_text())
    finally:
        hosts.stop()
        if keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
