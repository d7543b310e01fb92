from __future__ import annotations

import mmap
import subprocess
import sys

import pytest

from medfed.federation import allocator
from medfed.federation.allocator import MAX_UNUSED_BYTES, FreedMemory

CODE = """
import threading
from medfed.federation.allocator import share_one_pool
if {share}:
    share_one_pool()
    share_one_pool()
kept = []
# Small objects that are not Python's own: each thread's pool would map memory of its own for them.
import numpy as np
def work():
    kept.append([np.empty(2000, np.uint8) for _ in range(50)])
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
    thread.join()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc_stats()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' C libraries have no pools to share")
def test_threads_share_the_first_pool():
    def pools(share: bool) -> int:
        code = CODE.format(share=share)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return done.stderr.count("Arena ")

    assert pools(True) == 1
    assert pools(False) > 1


def test_freed_memory_goes_back_whenever_the_process_has_grown_by_so_much(monkeypatch):
    resident, trims = [1000], []

    def trim() -> None:
        trims.append(resident[0])
        resident[0] -= 300

    monkeypatch.setattr(allocator, "_resident_bytes", lambda: resident[0])
    monkeypatch.setattr(allocator, "_trim", trim)
    freed = FreedMemory()
    freed.give_back()
    resident[0] += MAX_UNUSED_BYTES
    freed.give_back()
    assert trims == []
    resident[0] += 1
    freed.give_back()
    freed.give_back()
    assert trims == [1001 + MAX_UNUSED_BYTES]
    resident[0] += MAX_UNUSED_BYTES  # what sites keep counts as in use from then on
    freed.give_back()
    assert len(trims) == 1
    resident[0] += 1
    freed.give_back()
    assert len(trims) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say it so")
def test_what_a_process_takes_is_at_least_what_it_has_written():
    before = allocator._resident_bytes()
    with mmap.mmap(-1, 64 << 20) as written:  # not memory that this process has already and uses again
        for page in range(0, 64 << 20, mmap.PAGESIZE):
            written[page] = 1
        assert allocator._resident_bytes() - before > 60 << 20
    allocator._trim()
