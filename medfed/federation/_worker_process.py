"""A worker's process, and how one is started on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from medfed.exchange._worker_link import Connection, Link

# What a worker's interpreter runs: the caller's import path, then the module's `main` with the connection.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "import importlib; importlib.import_module(sys.argv[2]).main(int(sys.argv[3]))"
)


class WorkerProcess(Protocol):
    """The process of a worker, on this machine or another one."""

    @property
    def name(self) -> str:
        """Which process it is, for a person."""
        ...

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        ...

    @property
    def how_ended(self) -> str:
        """How it ended, as the rest of a sentence that begins with "the worker process"."""
        ...

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended; return whether it has."""
        ...


# Starts a worker: its module, and with how many threads it computes, None if with torch's own.
Launch = Callable[[str, int | None], tuple[WorkerProcess, Connection]]


class _LocalProcess:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def name(self) -> str:
        return str(self._process.pid)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def how_ended(self) -> str:
        return how_ended(self._process.returncode)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    def wait(self, timeout_s: float | None = None) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def start_process(module: str, threads: int | None) -> tuple[WorkerProcess, Connection]:
    """Start a worker in a process of this machine."""
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    descriptor = theirs.fileno()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path), module, str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # a command's own standard output may be a document
            pass_fds=(descriptor,),
            env=environment,
            process_group=0,  # else Ctrl-C would reach it, too
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    link = Link(ours)
    threading.Thread(target=_shut_at_end, args=(process, link), daemon=True).start()
    return _LocalProcess(process), link


def _shut_at_end(process: subprocess.Popen[bytes], link: Link) -> None:
    """Close a worker's connection once it has ended: its own children may hold the other end open."""
    process.wait()
    link.shut()


def how_ended(returncode: int) -> str:
    """Return how a process ended, for a person."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in {*signal.Signals} else str(-returncode)
    out_of_memory = " (perhaps as this machine ran out of memory)" if name == "SIGKILL" else ""
    return f"was ended by {name}{out_of_memory}"
