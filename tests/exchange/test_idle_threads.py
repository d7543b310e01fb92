from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch

from medfed.exchange import _idle_threads
from medfed.exchange._idle_threads import end_idle_threads


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP is looked for on Linux only")
def test_a_threads_helpers_end_and_start_again_with_the_same_result():
    values = torch.arange(4_000_000.0)
    seen: list[int] = []
    sums: list[torch.Tensor] = []

    def compute():
        for _ in range(2):
            sums.append(torch.sin(values))  # in parallel
            seen.append(threads_of_this_process())
            end_idle_threads()
            seen.append(threads_of_this_process())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen[1] == seen[0] - 1
    assert seen[3] == seen[2] - 1
    assert torch.equal(*sums)


def test_without_openmp_nothing_happens(monkeypatch):
    monkeypatch.setattr(_idle_threads, "_pauses", lambda: ())
    end_idle_threads()
