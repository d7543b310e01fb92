"""Background polling while a command runs, and its final status."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medfed.errors import MedfedError
from medfed.runs.status import Status


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


@contextmanager
def record_exit(status: Status) -> Iterator[None]:
    """Write to the status how the block ended, if it was interrupted or failed.

    Raises:
        KeyboardInterrupt: if someone interrupted it; Lightning ends an interrupted process by SystemExit.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        status.update(state="interrupted")
        raise KeyboardInterrupt from None
    except BaseException as error:
        # Another library's message may quote a path or a header.
        reason = str(error) if isinstance(error, MedfedError) else type(error).__name__
        status.update(state="stopped", reason=reason)
        raise
