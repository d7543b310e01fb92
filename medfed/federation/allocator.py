"""One memory pool for all threads of a simulation, since only one of its sites trains at a time.

The GNU C library gives each thread a pool of its own, which keeps what the thread has freed. With a thread
for each site, every pool kept the buffers of a whole training step: 40 MB for each site of 10 million
parameters (benchmarks/simulation.py). A few sites each have a pool of their own, 2 % faster in training.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

# mallopt's parameter: the largest number of pools ("arenas").
_M_ARENA_MAX = -8

# How many sites of a simulation may each have a pool.
MAX_POOLS = 4


def share_one_pool() -> None:
    """Let threads that are started from now on allocate from the process's first pool.

    It has no effect where the C library is another one than GNU's.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


# How much a simulation grows before what it has freed is given back. Doing so walks through the pool, and
# pages that are used again have to be got again, so it is not done for each site.
MAX_UNUSED_BYTES = 256 << 20


class FreedMemory:
    """Gives freed memory back to the system whenever the process has grown by `MAX_UNUSED_BYTES`.

    Between what sites keep, the pool leaves gaps that it does not fill: for 30 sites of 10 million parameters
    it held 0.7 GB of which nothing was in use.
    """

    def __init__(self) -> None:
        self._before = _resident_bytes()

    def give_back(self) -> None:
        """Give it back if the process has grown by so much since the last time."""
        if _resident_bytes() <= self._before + MAX_UNUSED_BYTES:
            return
        _trim()
        self._before = _resident_bytes()


def _trim() -> None:
    trim = None if sys.platform != "linux" else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident_bytes() -> int:
    """Return how much memory the process takes, 0 where the system does not say it so."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE
