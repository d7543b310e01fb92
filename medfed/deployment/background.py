"""Background polling while a command runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def run_periodically(seconds: float, function: Callable[[], None], name: str) -> Iterator[None]:
    """Call a function every so many seconds, in a thread of that name, while the block runs."""
    stopped = threading.Event()

    def repeat() -> None:
        while not stopped.wait(seconds):
            function()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
