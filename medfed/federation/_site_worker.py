"""A worker process of a simulation: it trains some of the study's sites, in turn, as a simulation does.

It is a process of its own, so its training has OpenMP threads, Python's lock and memory of its own. It ends
with the process that started it: the connection to that is its only reason to live.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NoReturn, cast

import torch

from medfed.exchange._worker_link import (
    Answer,
    Connection,
    Link,
    ModelSent,
    Report,
    Setup,
    SiteEnded,
    StartSite,
    StudyClosed,
    WorkerEnds,
    failure_of,
)
from medfed.exchange._worker_side import WorkerExchange
from medfed.federation._scheduler import SiteScheduler
from medfed.federation.allocator import share_one_pool
from medfed.runs.json_log import RUNNING_SITE
from medfed.wire.audit_log import AuditLog

# What a worker trains: given its exchange and its reports, the function of each site that is started.
SiteWork = Callable[[StartSite], None]
Begin = Callable[[Mapping[str, Any], "WorkerSide"], SiteWork]

_DEAD = 1

# How long a site's thread may still take once it has said that it has ended.
_LAST_STEPS_S = 1.0


class WorkerSide:
    """What the code of a worker's sites works with: the exchange, the audit log, and what a person sees."""

    def __init__(self, link: Connection, exchange: WorkerExchange) -> None:
        self._link, self.exchange = link, exchange

    def report(self, site: str, what: str, *arguments: Any) -> None:
        """Send what a person sees; nobody waits for an answer."""
        self._link.send(Report(site, what, list(arguments)))

    def audit(self, site: str) -> AuditLog:
        """Return the run's audit log, as this site writes to it."""
        # The log is of one process, which verifies it anew whenever another one wrote.
        return cast(AuditLog, _RemoteAudit(self.exchange, site))


class _RemoteAudit:
    """The audit log of the process that has the hub; a line is on disk when `write` returns."""

    def __init__(self, exchange: WorkerExchange, site: str) -> None:
        self._exchange, self._site = exchange, site

    @property
    def is_written(self) -> bool:
        return bool(self._exchange.call(self._site, "audit_is_written"))

    @property
    def head(self) -> str:
        return str(self._exchange.call(self._site, "audit_head"))

    def write(self, event: str, **fields: Any) -> None:
        self._exchange.call(self._site, "audit_write", event, fields)


def serve(end: int | Connection, begin: Begin) -> None:
    """Train the sites that the process at the other end starts, until it ends this process.

    `end` is a connection, or the descriptor of a socket; a process with the latter has nothing else to do.
    """
    if isinstance(end, int):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for that process, which ends this one
        link: Connection = Link(socket.socket(fileno=end))
    else:
        link = end
    received = link.receive()
    if received is None or not isinstance(received[0], Setup):
        _end()
    _Worker(link, received[0], begin).run()


class _Worker:
    def __init__(self, link: Connection, setup: Setup, begin: Begin) -> None:
        self._link, self._scheduler = link, SiteScheduler()
        self._exchange = WorkerExchange(link, setup, self._scheduler.idle)
        self._side = WorkerSide(link, self._exchange)
        self._threads: list[threading.Thread] = []
        _send_logs(self._side, setup.log_levels)
        share_one_pool()
        try:
            self._work = begin(setup.work, self._side)
        except Exception as error:  # noqa: BLE001 - each site that is to be trained here raises it
            self._work = _raising(error)

    def run(self) -> None:
        """Do what is received until the end."""
        while (received := self._link.receive()) is not None:
            frame, files = received
            if isinstance(frame, Answer):
                self._exchange.answered(frame)
            elif isinstance(frame, ModelSent):
                self._exchange.model_came(frame, files[0])
            elif isinstance(frame, StartSite):
                self._start(frame)
            elif isinstance(frame, StudyClosed):
                self._exchange.closed = True
            elif isinstance(frame, WorkerEnds):
                for thread in self._threads:
                    thread.join(_LAST_STEPS_S)
                if any(thread.is_alive() for thread in self._threads):
                    break  # inside torch, which would abort the process at its end
                return
        _end()

    def _start(self, start: StartSite) -> None:
        self._exchange.site_begins(start.site)
        target, arguments = copy_context().run, (self._run_site, start)
        thread = threading.Thread(target=target, args=arguments, name=f"medfed-{start.site}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run_site(self, start: StartSite) -> None:
        RUNNING_SITE.set(start.site)
        # As in `simulation.py`: else oneDNN's layers take OpenMP's default here.
        torch.set_num_threads(torch.get_num_threads())
        failure = None
        try:
            with self._scheduler.turn():
                self._work(start)
                self._scheduler.forget(self._exchange)
        except BaseException as error:  # noqa: BLE001 - it is raised in the process that has the hub
            failure = failure_of(error)
        self._link.send(SiteEnded(start.site, failure))


def _raising(error: Exception) -> SiteWork:
    def work(start: StartSite) -> None:
        raise error

    return work


def _end() -> NoReturn:
    """End this process at once: nobody is left to work for, and threads may be inside torch."""
    os._exit(_DEAD)


def _send_logs(side: WorkerSide, levels: tuple[int, int]) -> None:
    """Send what is logged or warned of to the process that has the hub, whose handlers show it."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
            site = getattr(record, "site", None) or RUNNING_SITE.get() or ""
            with suppress(OSError):  # nobody is left to read it
                side.report(site, "log", record.name, record.levelno, record.getMessage(), trace)

    root = logging.getLogger()
    root.setLevel(levels[0])
    logging.getLogger("medfed").setLevel(levels[1])
    root.addHandler(Forward())
    logging.captureWarnings(True)
