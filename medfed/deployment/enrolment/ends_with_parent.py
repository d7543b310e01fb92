"""Run a program that the kernel ends together with the process that started it, even one that is killed.

    python -I -S ends_with_parent.py PARENT PROGRAM [ARGUMENT ...]

Linux sends the signal once the thread that started this process has ended, so `Broker` starts it from the
thread that supervises it. It is a script of its own because a signal at a parent's death must be asked for in
the child: between fork and exec no Python code is safe in a process with threads.

The signal is SIGKILL: nats-server 2.15 with an inconsistent store traps SIGTERM and never ends. What it has
acknowledged is in the system's page cache by then, and is not lost.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# prctl(2): the signal that this process gets when its parent dies; exec keeps it.
_PR_SET_PDEATHSIG = 1


def ending_with_parent(command: list[str]) -> list[str]:
    """Return a command that runs `command` until this process ends; the same one where no system does so."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid()), *command]


def main(parent: int, command: list[str]) -> None:
    """Become `command`, unless the process `parent` has ended already.

    Raises:
        OSError: if the system sends no such signal, or the program cannot be run.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() == parent:
        os.execv(command[0], command)  # noqa: S606 - as in subprocess, without a shell


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
