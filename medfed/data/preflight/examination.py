"""Examines cases in several processes, so that one bad file stops neither the others nor the caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import Any

from medfed.data.preflight.case import CaseFacts, CaseRequest, examine

# Default number of processes, on a machine with at least as many cores.
MAX_PROCESSES = 4

# What a process needs to examine any case. Together they take seconds to import, so one server process
# imports them once and each examining process is forked from it.
_PRELOADED = ["medfed.data.preflight.preflight", "nibabel", "pydicom", "torch"]


def examine_all(
    requests: Sequence[CaseRequest], processes: int | None, progress: Callable[[int, int], None]
) -> Iterator[CaseFacts]:
    """Yield the facts of each case as it is done; a case that kills its process is reported as corrupt.

    `progress` is called with the number of cases done and of all cases.
    """
    workers = processes if processes is not None else min(MAX_PROCESSES, os.cpu_count() or 1)
    use_processes = workers > 1 and len(requests) >= 2 * workers
    results = _in_processes(requests, workers) if use_processes else map(examine, requests)
    for done, facts in enumerate(results, start=1):
        yield facts
        progress(done, len(requests))


def _in_processes(requests: Sequence[CaseRequest], workers: int) -> Iterator[CaseFacts]:
    waiting = {request.number: request for request in requests}
    try:
        with _pool(workers) as pool:
            futures: dict[Future[CaseFacts], int] = {
                pool.submit(examine, request): request.number for request in requests
            }
            for future in as_completed(futures):
                facts = future.result()
                del waiting[futures[future]]
                yield facts
    except BrokenExecutor:
        pass
    # Only if a process died: one case at a time shows which one killed it.
    for request in list(waiting.values()):
        try:
            with _pool(1) as pool:
                yield pool.submit(examine, request).result()
        except BrokenExecutor:
            detail = "reading it ended its process; memory ran out, or it is damaged"
            yield CaseFacts(request.number, [("corrupt", detail)])


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of new processes that do not run the caller's script again, as they otherwise would.

    A script without `if __name__ == "__main__"`, or code typed into an interpreter, would end each process,
    and every image would be called damaged.
    """
    main: dict[str, Any] = vars(sys.modules["__main__"])
    saved: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        with ProcessPoolExecutor(workers, mp_context=_context()) as pool:
            yield pool
    finally:
        main.update(saved)


def _context() -> BaseContext:
    """Return how a process starts: never as a fork of this one, whose threads may hold locks."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context
