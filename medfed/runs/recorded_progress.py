"""A run's progress written to its status file, beside the display that a person looks at."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from medfed.files import utc_now
from medfed.runs.progress import NOBODY, SITE_STOPPED, Progress, state_of_site
from medfed.runs.rounds import RoundLine, RoundReport, lines_of
from medfed.runs.status import Status
from medfed.runs.trackers import Tracking


@contextmanager
def record_warnings(status: Status) -> Iterator[None]:
    """Add medfed's logged warnings to a status while the block runs; they go where they went before, too."""
    logger = logging.getLogger("medfed")
    fallback = None if logger.hasHandlers() else logging.lastResort

    class StatusHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            status.log(record.getMessage())
            if fallback is not None:  # which Python uses only where there is no handler
                fallback.handle(record)

    handler = StatusHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class RecordedProgress(Progress):
    """Hands everything on to a display, and writes it to a status.

    A run may train more than the study's federation (its local models, other seeds): only the first phase's
    rounds are the study's.

    Args:
        display: what a person looks at.
        status: the file.
        before: the rounds before this process resumed the run.
        tracking: the trackers that get the study's rounds, too.
    """

    def __init__(
        self,
        display: Progress,
        status: Status,
        before: Sequence[RoundLine] = (),
        tracking: Tracking | None = None,
    ) -> None:
        self._tracking = tracking
        self._display, self._status, self._phases, self._before = display, status, 0, before

    def opened(self, folder: Path) -> None:
        self._display.opened(folder)

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        self._display.start(title, sites, rounds, metric)
        self._phases += 1
        self._status.update(phase=title)
        if self._phases == 1:
            self._status.update(rounds=rounds, metric=metric)
            for site, cases in sites.items():
                self._status.site(site, cases=cases or None)
            self._status.take(self._before)

    def training(self, site: str, step: int, steps: int) -> None:
        self._display.training(site, step, steps)
        self._record_training(site, step, steps, self._status.record.sites)

    def training_together(self, site: str, step: int, steps: int, turns: Collection[str]) -> None:
        self._display.training_together(site, step, steps, turns)
        self._record_training(site, step, steps, turns)

    def _record_training(self, site: str, step: int, steps: int, turns: Collection[str]) -> None:
        for other, known in self._status.record.sites.items():
            if other != site and known.state == "training" and other in turns:
                self._status.site(other, state="waiting")
        self._status.site(site, state="training", step=step, steps=steps, last_seen=utc_now())
        self._status.update(step=step, steps=steps)

    def connections(
        self,
        connected: Collection[str],
        awaited: Collection[str],
        remaining_s: float | None,
        stopped: Mapping[str, str] = NOBODY,
    ) -> None:
        self._display.connections(connected, awaited, remaining_s, stopped)
        for site, known in self._status.record.sites.items():
            state, reason = known.state, known.reason
            if site in stopped:
                state, reason = SITE_STOPPED, stopped[site]
            else:
                state = state_of_site(state, site in connected, site in awaited)
            if known.state == SITE_STOPPED != state:
                reason = ""
            self._status.site(site, connected=site in connected, state=state, reason=reason)
        self._status.update(
            connected=sorted(connected),
            awaited=sorted(awaited),
            round_ends_in_s=None if remaining_s is None else round(remaining_s, 1),
        )

    def round(self, report: RoundReport) -> None:
        self._display.round(report)
        if self._phases > 1:
            return
        self._status.take(lines_of(report))
        if self._tracking is not None:
            self._tracking.round(report)
        if report.scored is None and not report.final:
            self._status.update(round=report.round, last_round_s=round(report.seconds, 1))

    def log(self, text: str) -> None:
        self._display.log(text)
        self._status.log(text)

    def stop(self) -> None:
        self._display.stop()
