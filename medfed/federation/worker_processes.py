"""The sites of a simulation in worker processes, so that several train at once.

Each worker has sites of its own for the whole run, which take turns in it. Each site's random states, its
optimiser and its local method's state are the site's own, so the result does not depend on which worker has
it. A worker that dies is replaced, and its sites go on from their last checkpoints, as after a restart: the
same bits. Workers are started anew, not forked: what a fork copies of torch's threads and CUDA does not work.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from medfed.errors import ExchangeError, SiteError, StudyError
from medfed.exchange import MemoryExchange
from medfed.exchange._worker_host import SharedModels, WorkerCalls
from medfed.exchange._worker_link import (
    Call,
    Connection,
    NamelessFile,
    Report,
    Setup,
    SiteEnded,
    StartSite,
    StudyClosed,
    WorkerEnds,
    error_of,
)
from medfed.federation._scheduler import TrainsElsewhere
from medfed.federation._worker_process import Launch, WorkerProcess, start_process
from medfed.wire.audit_log import AuditLog

log = logging.getLogger("medfed.federation")

# How often a worker is replaced while none of its sites sends an update: then it is not chance that ends it.
MAX_REPLACED = 3

# How long the sites of a study that ended early have to stop at their next step before they are killed.
GRACE_S = 10.0


@dataclass(frozen=True)
class Workers:
    """What the worker processes of a simulation are.

    module: its `main` is called with the descriptor of the connection, and calls `_site_worker.serve`.
    shares: the sites of each worker.  threads: how many threads each computes with; None leaves it to torch.
    work: what each worker gets as its `Setup.work`, as plain values.  work_of: likewise for one site.
    report: called with what a site shows a person (`WorkerSide.report`), by one thread at a time.
    resume: whether sites go on from their last checkpoints from the beginning.
    launch: starts a worker, by default as a process of this machine (`ray_workers.py` has another one).
    """

    module: str
    shares: Sequence[Sequence[str]]
    threads: int | None
    work: Mapping[str, Any]
    work_of: Callable[[str], Mapping[str, Any]] = lambda site: {}
    report: Callable[[str, str, Sequence[Any]], None] = lambda site, what, arguments: None
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    resume: bool = False
    study_digest: str = ""
    launch: Launch = start_process


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares_of(costs: Mapping[str, float], workers: int) -> tuple[tuple[str, ...], ...]:
    """Return the sites of each worker, so that the largest sum of costs is small.

    The costliest site first, each to the worker that has least so far (Graham, SIAM J. Appl. Math. 17, 1969).
    """
    shares: list[list[str]] = [[] for _ in range(min(workers, len(costs)))]
    sums = [0.0] * len(shares)
    for site in sorted(costs, key=lambda one: (-costs[one], one)):
        least = sums.index(min(sums))
        shares[least].append(site)
        sums[least] += costs[site]
    return tuple(tuple(sorted(share)) for share in shares)


class WorkerProcesses:
    """The running workers: `function(site)` is what `simulate` calls for a site.

    To be closed in the end, whatever happened; then no process of it is left.
    """

    def __init__(self, workers: Workers) -> None:
        self._models, self._reporting = SharedModels(), threading.Lock()
        self._workers: list[_Worker] = []
        try:
            for number in range(len(workers.shares)):
                self._workers.append(_Worker(workers, number, self._models, self._reporting))
        except BaseException:  # one that this machine has no memory for
            self.close()
            raise
        self._of = {site: one for one in self._workers for site in one.sites}
        self._hears: set[int] = set()
        self._lock = threading.Lock()

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of the processes that run, which are their ids on this machine."""
        return tuple(one.process.name for one in self._workers if one.process.runs)

    def beside(self, site: str) -> tuple[str, ...]:
        """Return the sites of the same worker, with which a site takes turns."""
        return self._of[site].sites

    def function(self, site: str) -> TrainsElsewhere:
        """Return the function of a site, which trains it in its worker."""
        worker = self._of[site]

        def work(exchange: MemoryExchange) -> None:
            with self._lock:
                if id(exchange) not in self._hears:
                    self._hears.add(id(exchange))
                    exchange.on_closed.append(self._study_closed)
            worker.run(site, exchange)

        return TrainsElsewhere(work)

    def _study_closed(self) -> None:
        for worker in self._workers:
            worker.study_closed()

    def close(self) -> None:
        """End all workers, those at once that still train."""
        for worker in self._workers:
            worker.end()


@dataclass
class _Site:
    """A site of a worker: what has come from it and is not done yet, and where it runs now."""

    events: SimpleQueue[_Event]
    # The number of the process in which it runs, 0 if in none.
    runs_in: int = 0


@dataclass(frozen=True)
class _Event:
    """What came from a site, None if its process died; with the file that came, and what answers it."""

    frame: Call | SiteEnded | None
    calls: WorkerCalls | None = None
    file: NamelessFile | None = None


class _Worker:
    """One worker: its process, which may be replaced, and the threads that answer it."""

    def __init__(
        self, workers: Workers, number: int, models: SharedModels, reporting: threading.Lock
    ) -> None:
        self._workers, self._models, self._reporting = workers, models, reporting
        self.sites = tuple(workers.shares[number])
        self._known = {site: _Site(SimpleQueue()) for site in self.sites}
        # Held while the process is replaced or a site is started in it.
        self._lock = threading.Lock()
        self._replaced, self._ending = 0, False
        # How many processes there were, and whether the newest one was told what it works on, or is dead.
        self._number, self._set_up, self._dead = 0, False, False
        self.process, self._link = self._begin()

    def run(self, site: str, exchange: MemoryExchange) -> None:
        """Train a site in the worker, and in the one that replaces it if it dies.

        Raises:
            SiteError: if workers die again and again.
            ExchangeError: if the study has been closed meanwhile.
            BaseException: what the site's function raised.
        """
        self._start(site, exchange, self._workers.resume)
        while True:
            event = self._known[site].events.get()
            frame = event.frame
            if frame is None:
                if exchange.closed:
                    raise ExchangeError(f"site '{site}': its worker was ended, as the study has ended")
                self._start(site, exchange, resume=True)
            elif isinstance(frame, Call):
                assert event.calls is not None
                with suppress(OSError):  # it has died, which comes next
                    event.calls.answer(frame, exchange, event.file)
                if frame.method == "send":
                    self._replaced = 0
            elif frame.failure is not None:
                raise error_of(frame.failure)
            else:
                return

    def study_closed(self) -> None:
        """Let all sites stop at their next step, and kill them if they do not."""
        if any(one.runs_in for one in self._known.values()):
            timer = threading.Timer(GRACE_S, lambda: self.process.kill())
            timer.daemon = True
            timer.start()
        with suppress(OSError):
            self._link.send(StudyClosed())

    def end(self) -> None:
        """End the process: in order if its sites have ended, else at once."""
        self._ending = True
        if any(one.runs_in for one in self._known.values()):
            self.process.kill()  # before the lock, as whoever has it may wait for this process
        with self._lock:
            with suppress(OSError):
                self._link.send(WorkerEnds())
            if not self.process.wait(GRACE_S):
                self.process.kill()
                self.process.wait()
            self._link.shut()

    # -- the process

    def _begin(self) -> tuple[WorkerProcess, Connection]:
        self._number, self._set_up, self._dead = self._number + 1, False, False
        process, link = self._workers.launch(self._workers.module, self._workers.threads)
        calls = WorkerCalls(link, self._models, self._answer_own)
        threading.Thread(target=self._receive, args=(self._number, link, calls), daemon=True).start()
        return process, link

    def _start(self, site: str, exchange: MemoryExchange, resume: bool) -> None:
        """Start a site in the worker, replacing its process first if that has died."""
        with self._lock:
            if self._ending:
                raise ExchangeError(f"site '{site}': the workers have been ended")
            if self._dead:
                self._replace()
            work = dict(self._workers.work_of(site))
            self._known[site].runs_in = self._number
            with suppress(OSError):  # it died just now: `_receive` tells each site that runs in it
                if not self._set_up:
                    self._link.send(self._setup(exchange))
                    self._set_up = True
                self._link.send(StartSite(site, resume, work))

    def _replace(self) -> None:
        self.process.kill()
        self.process.wait()
        self._replaced += 1
        ended, sites = self.process.how_ended, ", ".join(f"'{site}'" for site in self.sites)
        if self._replaced > MAX_REPLACED:
            raise SiteError(
                f"the worker process of {sites} {ended}, {MAX_REPLACED + 1} times before one of them sent an "
                "update; if this machine lacks memory, choose fewer simulation.workers or a smaller batch, "
                "and continue with --resume"
            )
        log.warning(
            "the worker process of %s %s; another one takes its place, and they go on from their last "
            "checkpoints",
            sites,
            ended,
        )
        self.process, self._link = self._begin()

    def _setup(self, exchange: MemoryExchange) -> Setup:
        levels = logging.getLogger().level, logging.getLogger("medfed").level
        return Setup(
            self._workers.study_digest,
            exchange.parties,
            exchange.only_selected,
            levels,
            dict(self._workers.work),
        )

    # -- what comes from it

    def _receive(self, number: int, link: Connection, calls: WorkerCalls) -> None:
        while (received := link.receive()) is not None:
            frame, files = received
            if isinstance(frame, Report):
                self._reported(frame)
            elif isinstance(frame, Call):
                file = calls.file_of(frame, files[0]) if frame.method == "send" else None
                self._known[frame.site].events.put(_Event(frame, calls, file))
            elif isinstance(frame, SiteEnded):
                self._known[frame.site].runs_in = 0
                self._known[frame.site].events.put(_Event(frame))
        link.close()
        with self._lock:
            self._dead = True
            for site in self._known.values():
                if site.runs_in == number:
                    site.runs_in = 0
                    site.events.put(_Event(None))

    def _reported(self, report: Report) -> None:
        try:
            with self._reporting:
                if report.what == "log":
                    _log(report.site, *report.arguments)
                else:
                    self._workers.report(report.site, report.what, report.arguments)
        except Exception:  # a display that fails must not leave the worker without answers
            log.exception("what the worker of site '%s' reports could not be shown", report.site)

    def _answer_own(self, call: Call) -> Any:
        audit = self._workers.audit
        if call.method == "audit_write":
            event, fields = call.arguments
            return audit.write(event, **fields)
        if call.method == "audit_head":
            return audit.head
        if call.method == "audit_is_written":
            return audit.is_written
        raise StudyError(f"site '{call.site}': a worker calls '{call.method[:40]}', which nobody answers")


def _log(site: str, name: str, level: int, text: str, trace: str) -> None:
    """Log what a site's worker has logged."""
    logger = logging.getLogger(name)
    if logger.isEnabledFor(level):
        record = logging.LogRecord(name, level, "", 0, "%s", (text,), None)
        record.exc_text, record.site = trace or None, site or None
        logger.handle(record)
