"""Concurrent transfers with a bound on how many run at once, so that memory holds only a few chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

# A transfer slower than this indicates a slow link: fewer then run at once, so that a dropped connection
# costs less.
SLOW_S = 2.0

_T = TypeVar("_T")


def run_bounded(
    jobs: Iterable[tuple[str, Callable[[], Future[_T]]]],
    on_done: Callable[[str, _T], None],
    limit: int,
    initial: int | None = None,
) -> None:
    """Start each job in turn and pass its name and result to `on_done`, with at most `limit` running.

    It starts with `initial` jobs at once (`limit` if None); each quick one allows one more, each slow
    one halves their number.
    """
    running: dict[Future[_T], tuple[str, float]] = {}
    width = limit if initial is None else initial

    def collect_finished() -> None:
        nonlocal width
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            name, began = running.pop(future)
            on_done(name, future.result())
            width = min(limit, width + 1) if time.monotonic() - began < SLOW_S else max(1, width // 2)

    try:
        for name, start in jobs:
            running[start()] = (name, time.monotonic())
            while len(running) >= width:
                collect_finished()
        while running:
            collect_finished()
    finally:
        # After an error, too: nothing may still be writing when this returns.
        wait(running)
