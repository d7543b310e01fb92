"""Commands that start processes of their own, such as those of DDP, and end together with them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_group(
    command: Sequence[str],
    *,
    timeout: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed; end all of its processes if it takes longer.

    `subprocess.run` ends the command alone, and then waits until the others close its pipes: with two
    processes of which one waits for the other, for as long as gloo waits, which is half an hour.

    Raises:
        AssertionError: if it takes longer, with what it printed.
    """
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        out, err = running.communicate()
        raise AssertionError(f"{command[:3]} took more than {timeout:g} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, running.returncode, out, err)
