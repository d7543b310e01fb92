"""A share that each machine has a copy of, synchronised in any order, late and in halves."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path


class Synchroniser:
    """Copies each file from its writer's folder to the others', after a random time, often half first."""

    def __init__(self, folder: Path, sites: tuple[str, ...], seed: int, study: str) -> None:
        self.space = study[:16]
        self.copies = {party: folder / party for party in ("hub", *sites)}
        for copy in self.copies.values():
            copy.mkdir()
        self.random, self.seen = random.Random(seed), {}
        self.jobs: list[tuple[float, Path, Path, bool]] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    def readers(self, writer: str) -> list[str]:
        return ["hub"] if writer != "hub" else [party for party in self.copies if party != "hub"]

    def run(self) -> None:
        while not self.stopped.wait(0.01):
            for writer, copy in self.copies.items():
                own = "glob" if writer == "hub" else f"up/{self.space}/{writer}"
                for folder, _, names in os.walk(copy / own):
                    for name in names:
                        if not name.startswith("."):
                            self.notice(Path(folder, name), copy, writer)
            now = time.monotonic()
            due, self.jobs = (
                [job for job in self.jobs if job[0] <= now],
                [job for job in self.jobs if job[0] > now],
            )
            self.random.shuffle(due)
            due.sort(key=lambda job: not job[3])  # what ends as half a file for ever is no synchronisation
            for _, source, target, half in due:
                self.copy(source, target, half)

    def notice(self, path: Path, copy: Path, writer: str) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self.seen.get(path) == state:
            return
        self.seen[path] = state
        for reader in self.readers(writer):
            target = self.copies[reader] / path.relative_to(copy)
            late = time.monotonic() + self.random.uniform(0, 0.4)
            if self.random.random() < 0.5:
                self.jobs.append((late, path, target, True))
                late += self.random.uniform(0.05, 0.3)
            self.jobs.append((late, path, target, False))

    def copy(self, source: Path, target: Path, half: bool) -> None:
        try:
            content = source.read_bytes()
        except FileNotFoundError:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content[: len(content) // 2] if half else content)
