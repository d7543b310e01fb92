"""Numbers on their way to trackers, in threads of their own: a slow or broken server costs no round."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from medfed.registry import kind_of
from medfed.runs.rounds import RoundReport
from medfed.runs.trackers._tracker import TrackedRun, Tracker

log = logging.getLogger("medfed.trackers")

# How many rounds or steps wait for a slow server before more are left out, and how long an end waits.
MAX_WAITING, CLOSE_S = 10_000, 10.0

_Numbers = tuple[dict[str, float], int]


class _Sender:
    """One tracker's thread. Whatever it raises is told once, by the error's name, and ends it alone."""

    def __init__(self, tracker: Tracker, run: TrackedRun) -> None:
        self._tracker, self._run, self._told = tracker, run, False
        self._waiting: queue.Queue[_Numbers | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"medfed-{kind_of(tracker)}", daemon=True)
        self._thread.start()

    def send(self, numbers: _Numbers) -> None:
        if self._thread.is_alive():
            try:
                self._waiting.put_nowait(numbers)
            except queue.Full:
                self._tell("it is too slow, and some numbers were left out")

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._tell(f"it did not take the last numbers within {CLOSE_S:g} s")

    def _work(self) -> None:
        try:
            logger = self._tracker.open(self._run)
            while (numbers := self._waiting.get()) is not None:
                logger.log_metrics(*numbers)
            logger.save()
            logger.finalize("success")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tracker may fail in any way
            self._tell(f"{type(error).__name__}; it gets nothing more of this run")

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            log.warning("tracker '%s': %s. rounds.jsonl has every round", kind_of(self._tracker), what)


class Tracking:
    """The trackers of one run."""

    def __init__(self, trackers: Sequence[Tracker], run: TrackedRun) -> None:
        self._senders = [_Sender(tracker, run) for tracker in trackers]

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers by name; those that are not finite are left out."""
        finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
        for sender in self._senders:
            sender.send((finite, step))

    def round(self, report: RoundReport) -> None:
        """Send what a hub records of a round: each site's numbers as `site/name`, and the round's own."""
        numbers: dict[str, float] = {"round/seconds": report.seconds}
        numbers["round/merged"] = sum(one.status == "merged" for one in report.results)
        numbers["round/bytes_up"] = sum(one.bytes_up for one in report.results)
        for result in report.results:
            numbers |= {f"{result.site}/{name}": value for name, value in result.scalars.items()}
        self.log(numbers, report.round)

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        for sender in self._senders:
            sender.close()


def logger_of(opened: Tracking) -> Any:
    """Return a logger for a Trainer that hands its numbers on: no settings, graph or checkpoint."""
    from pytorch_lightning.loggers import Logger
    from pytorch_lightning.utilities import rank_zero_only

    class Forwarding(Logger):
        """Hands on numbers."""

        @property
        def name(self) -> str:
            return "medfed"

        @property
        def version(self) -> str:
            return ""

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            """Settings are in the study."""

        @rank_zero_only
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            opened.log(metrics, step or 0)

    return Forwarding()
