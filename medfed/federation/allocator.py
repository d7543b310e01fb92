"""One memory pool for all threads of a simulation, since only one of its sites trains at a time.

The GNU C library gives each thread a pool of its own, which keeps what the thread has freed. With a thread
for each site, every pool kept the buffers of a whole training step: 40 MB for each site of 10 million
parameters (benchmarks/simulation.py).
"""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameter: the largest number of pools ("arenas").
_M_ARENA_MAX = -8


def share_one_pool() -> None:
    """Let threads that are started from now on allocate from the process's first pool.

    It has no effect where the C library is another one than GNU's.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back_free_memory() -> None:
    """Return pages to the system that hold nothing, wherever they lie between others.

    A site that waits for the first time leaves such gaps between the objects that it keeps: of a model with
    10 million parameters 8 MB for each site stayed in use, which a hundred sites then had for ever.
    """
    trim = None if sys.platform != "linux" else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
