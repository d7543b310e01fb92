"""What runs beside a party's own work until that ends: a look at something now and then, and the last
word in its status.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medfed.errors import MedfedError
from medfed.runs.status import Status


@contextmanager
def every(seconds: float, look: Callable[[], None], name: str) -> Iterator[None]:
    """Call `look` again and again, in a thread of that name, as long as the block runs."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def ending_told(status: Status) -> Iterator[None]:
    """Write into the status how the block ended, if it did not end well.

    Raises:
        KeyboardInterrupt: if someone ended it; Lightning ends an interrupted process by SystemExit.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        status.update(state="interrupted")
        raise KeyboardInterrupt from None
    except BaseException as error:
        # Another library's message may quote a path or a header.
        status.update(
            state="stopped", reason=str(error) if isinstance(error, MedfedError) else type(error).__name__
        )
        raise
