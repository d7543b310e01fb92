"""One progress bar for all sites that train in one process.

Lightning's default bar, rich's, lives once in a process: a second one takes the first one's display away, and
ending the first then raises inside its Trainer, so that code behind `fit` does not run. Here a federated fit
of several sites in one process shows no bar of its own; one bar counts the study's rounds for all of them.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from tqdm import tqdm  # type: ignore[import-untyped]


class RoundsBar:
    """Shows how many rounds of a study are merged, once a site's Trainer would have shown a bar."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._done = 0
        self._lock = threading.Lock()
        self._bar: Any = None

    @property
    def shown(self) -> bool:
        """Whether a site has asked for a bar."""
        return self._bar is not None

    def show(self) -> None:
        """Show the bar, if it is not shown yet."""
        with self._lock:
            if self._bar is None:
                self._bar = tqdm(total=self._rounds, initial=self._done, desc="rounds", unit="round")

    def round_finished(self) -> None:
        """Count one merged round; the report after the last one, of the final model, is none."""
        with self._lock:
            if self._done < self._rounds:
                self._done += 1
                if self._bar is not None:
                    self._bar.update(1)

    def close(self) -> None:
        """Leave the bar as it is."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()


_rounds_bar: ContextVar[RoundsBar | None] = ContextVar("medfed_rounds_bar", default=None)


def use_rounds_bar(bar: RoundsBar | None) -> None:
    """Set the bar that stands for the bars of this thread's federated fits; None leaves them as they are."""
    _rounds_bar.set(bar)


def replace_progress_bar(trainer: pl.Trainer) -> bool:
    """Show the rounds' bar instead of the Trainer's, and return whether the Trainer's was disabled."""
    shared = _rounds_bar.get()
    own: Any = trainer.progress_bar_callback
    if shared is None or not _is_lightnings(own) or own.is_disabled:
        return False
    own.disable()
    shared.show()
    return True


def _is_lightnings(bar: object) -> bool:
    # By name, so that the bars of the package `lightning` are met, whose classes are others.
    names = {RichProgressBar.__name__, TQDMProgressBar.__name__}
    return any(base.__name__ in names for base in type(bar).__mro__)
