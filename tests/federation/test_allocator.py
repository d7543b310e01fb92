from __future__ import annotations

import subprocess
import sys

import pytest

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
