"""Several pieces under way at once, never more than a window of them, so that memory stays a few chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

# A piece that took longer than this came over a slow link: fewer at once then, so that a cut costs less.
SLOW_S = 2.0


def run_bounded(
    jobs: Iterable[tuple[str, Callable[[], Future[Any]]]],
    done: Callable[[str, Any], None],
    window: int,
    first: int | None = None,
) -> None:
    """Begin each job in turn and hand its name and result to `done`, with at most `window` under way.

    It begins with `first` at once (all of them if None), one more after each quick one, half
    after a slow one.
    """
    under_way: dict[Future[Any], tuple[str, float]] = {}
    width = window if first is None else first

    def take_some() -> None:
        nonlocal width
        finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in finished:
            name, began = under_way.pop(future)
            done(name, future.result())
            width = min(window, width + 1) if time.monotonic() - began < SLOW_S else max(1, width // 2)

    try:
        for name, begin in jobs:
            under_way[begin()] = (name, time.monotonic())
            while len(under_way) >= width:
                take_some()
        while under_way:
            take_some()
    finally:
        # After an error too: nothing may go on writing when this has returned.
        wait(under_way)
