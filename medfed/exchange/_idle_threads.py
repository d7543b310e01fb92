"""Ends the OpenMP threads of a thread that waits, so that the one that works has the cores.

Torch computes with OpenMP, which gives each thread that computes a team of helpers and keeps it for the next
computation. Once the teams of a process have more threads than there are cores, helpers no longer wait by
spinning but sleep and are woken at every operation, though all teams but one are idle: on two cores a second
team made a small network's training 1.2 to 1.6 times slower, a third no worse, and ending idle teams cured it
(benchmarks/simulation.py). A team is made again when it is needed, which takes less than a millisecond.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

# OpenMP 5.0: omp_pause_soft, which keeps all settings.
_PAUSE_SOFT = 1


def end_idle_threads() -> None:
    """End the calling thread's OpenMP helpers; the next parallel operation starts them again.

    It changes no result: the number of threads stays the same. It does nothing where the system's OpenMP
    cannot be found or is older than version 5.0.
    """
    for pause in _pauses():
        pause(_PAUSE_SOFT)


@cache
def _pauses() -> tuple[Callable[[int], int], ...]:
    """Return `omp_pause_resource_all` of each OpenMP library that this process has loaded."""
    found = []
    for path in _openmp_libraries():
        try:
            found.append(ctypes.CDLL(path).omp_pause_resource_all)
        except (OSError, AttributeError):
            continue
    return tuple(found)


def _openmp_libraries() -> list[str]:
    if sys.platform != "linux":
        return []
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    names = ("libgomp", "libomp", "libiomp")
    return sorted(path for path in mapped if Path(path).name.startswith(names))
