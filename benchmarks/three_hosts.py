"""Run the three-machine tutorial's commands, as written, on three hosts (needs root).

    python benchmarks/three_hosts.py

The hosts, a coordinator and two hospitals, are network namespaces with their own addresses on one virtual
network. The script runs every block that the page marks with `<!-- run on HOST ... -->` on that host, in page
order, and writes every `<!-- file NAME on HOST -->`. It also passes on what people mail or read to each
other. It prints each command with its host and its seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOSTS = {"hub": "10.77.0.1", "north": "10.77.0.2", "south": "10.77.0.3"}
WIRE, PREFIX = "medfed-wire", "medfed-"
PATIENCE_S = 900


@dataclass
class Step:
    """A marked block of the page, with the host and the way to run or write it."""

    kind: str
    host: str
    how: str
    text: str
    file: str = ""


def steps(page: str) -> list[Step]:
    """Return the marked blocks of the page in order."""
    marked = re.compile(
        r"<!-- (?:run on (?P<host>\w+)(?:, (?P<how>[^>]*))?|file (?P<file>\S+) on (?P<place>\w+)) -->\n"
        r"(?P<block>(?:    .*\n|\n)+)"
    )
    found = []
    for one in marked.finditer(page):
        text = "\n".join(line[4:] for line in one["block"].rstrip().splitlines())
        kind = "file" if one["file"] else "run"
        found.append(Step(kind, one["host"] or one["place"], one["how"] or "", text, one["file"] or ""))
    return found


@dataclass
class Hosts:
    """The three hosts and the processes on them."""

    folder: Path
    authority: str = ""
    agreed: str = ""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def begin(self) -> None:
        """Create the namespaces, the network between them and the folders."""
        command(f"ip netns add {WIRE}")
        command(f"ip -n {WIRE} link add bridge type bridge")
        command(f"ip -n {WIRE} link set bridge up")
        for host, address in HOSTS.items():
            space = PREFIX + host
            command(f"ip netns add {space}")
            command(f"ip -n {space} link add eth0 type veth peer name {host} netns {WIRE}")
            command(f"ip -n {WIRE} link set {host} master bridge up")
            command(f"ip -n {space} addr add {address}/24 dev eth0")
            command(f"ip -n {space} link set eth0 up")
            command(f"ip -n {space} link set lo up")
            names = Path("/etc/netns") / space
            names.mkdir(parents=True)
            (names / "hosts").write_text(f"127.0.0.1 localhost\n{HOSTS['hub']} hub.example.org\n")
            (self.folder / host).mkdir()
        program = self.folder / "bin" / "medfed"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m medfed.cli "$@"\n')
        program.chmod(0o755)

    def end(self) -> None:
        """Stop the started processes and remove the namespaces and folders."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        for space in (*(PREFIX + host for host in HOSTS), WIRE):
            subprocess.run(["ip", "netns", "del", space], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)

    def process(self, host: str, text: str, out: int) -> subprocess.Popen[bytes]:
        """Start a command on a host, in the host's folder."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", PREFIX + host, "bash", "-c", f"exec {text}" if "<" not in text else text],
            cwd=self.folder / host,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def run(self, step: Step) -> str:
        """Run a block with the values that people exchange filled in, and return its output."""
        text = step.text.replace("1a2b 3c4d ...", self.authority).replace("1a2b3c4d5e6f...", self.agreed)
        mailed = re.search(r"mailed (\S+)", step.how)
        if mailed:
            source = self.folder / ("hub" if step.host != "hub" else other(mailed[1])) / mailed[1]
            shutil.copy(source, self.folder / step.host / source.name)
        if "background" in step.how:
            out = (self.folder / f"{step.host}.log").open("ab")
            self.running[step.host] = self.process(step.host, text, out.fileno())
            return ""
        if "all is over" in step.how:
            for host, process in self.running.items():
                if process.wait(PATIENCE_S) != 0:
                    raise SystemExit(f"{host} ended badly: {(self.folder / f'{host}.log').read_text()}")
        expected = int((re.search(r"expecting (\d)", step.how) or [0, 0])[1])
        for _ in range(60 if "once the hub" in step.how else 1):
            began = time.monotonic()
            done = self.process(step.host, text, subprocess.PIPE)
            said = done.communicate(b"y\n", PATIENCE_S)[0].decode()
            if done.returncode == expected:
                break
            time.sleep(1)
        else:
            raise SystemExit(
                f"{step.host}: {text}\nended with {done.returncode}, expected {expected}:\n{said}"
            )
        print(f"{step.host:6} {time.monotonic() - began:6.1f} s  {text}")
        return said


def other(path: str) -> str:
    """Return the hospital that this file belongs to."""
    return "south" if "south" in path else "north"


def command(text: str) -> None:
    """Run a set-up command, which must succeed."""
    subprocess.run(text.split(), check=True)


def main() -> None:
    """Run all blocks of the page."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hospitals import make_hospital

    hosts = Hosts(Path(tempfile.mkdtemp(prefix="medfed-hosts-")))
    page = (ROOT / "docs" / "tutorials" / "three-machines.md").read_text()
    late: list[Step] = []
    try:
        hosts.begin()
        for host in ("north", "south"):
            shutil.move(make_hospital(hosts.folder / "made" / host), hosts.folder / host / "images")
        for step in steps(page):
            if "once the hub" in step.how:
                late.append(step)
                continue
            both = step.host == "north" or ("north" in step.text and step.kind == "run")
            for name in ("north", "south") if both else ("",):
                said = one(hosts, renamed(step, name))
                if "enrol init" in step.text:
                    hosts.authority = said.strip().splitlines()[-1].strip()
                if "nobody here has agreed" in said:
                    page_of = next((hosts.folder / name / "runs").glob("*.txt")).read_text()
                    hosts.agreed = (re.search(r"Digest +([0-9a-f]{64})", page_of) or [0, ""])[1]
            if step.host == "hub" and "background" in step.how:
                for waiting in late:
                    if "INFO" not in one(hosts, waiting):
                        raise SystemExit("the broker did not greet")
        for host in ("north", "south"):
            heard = subprocess.run(
                ["ip", "netns", "exec", PREFIX + host, "ss", "-Hltn"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            print(f"{host:6} listens on {heard.strip() or 'no port'}")
        print((hosts.folder / "hub.log").read_text())
    finally:
        hosts.end()
        shutil.rmtree(hosts.folder)


def renamed(step: Step, name: str) -> Step:
    """Return the step for one hospital; the page shows only north's."""
    if not name:
        return step
    host = name if step.host == "north" else step.host
    return Step(step.kind, host, step.how.replace("north", name), step.text.replace("north", name), step.file)


def one(hosts: Hosts, step: Step) -> str:
    """Write a file or run a block."""
    if step.kind == "file":
        (hosts.folder / step.host / step.file).write_text(step.text + "\n")
        return ""
    return hosts.run(step)


if __name__ == "__main__":
    main()
