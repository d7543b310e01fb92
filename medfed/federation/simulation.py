"""All sites of a study in one process: real Trainers, the same callback, the memory exchange.

Sites are threads that take turns: one trains at a time, on all cores, and hands over while it waits at the
exchange. Each site has its own random states of Python, NumPy and torch, restored when its turn comes;
otherwise the threads would share one stream and no run would repeat.

Nothing that a site's function does is lost: what it raises is logged with its traceback and, once too few
sites are left, raised; a function that returns before the study has ended withdraws its site.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from medfed.aggregation import Rule
from medfed.errors import ExchangeError, MedfedError, QuorumError, SiteError, StudyError
from medfed.exchange import MemoryExchange, detail_of
from medfed.federation._scheduler import SiteScheduler, SitesElsewhere, TrainsElsewhere
from medfed.federation.allocator import MAX_POOLS, share_one_pool
from medfed.federation.config import HubConfig
from medfed.federation.hub import ModelCallback, RoundCallback, run_hub
from medfed.federation.model_selection import ModelSelection
from medfed.federation.progress_bar import RoundsBar, use_rounds_bar
from medfed.privacy import Privacy
from medfed.registry import kind_named
from medfed.runs.json_log import RUNNING_SITE
from medfed.runs.notebook import notebook_progress
from medfed.runs.rounds import RoundReport
from medfed.wire.audit_log import AuditLog
from medfed.wire.messages import SiteChannel
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# How long a study that ends early waits for a site to notice it: one step of training, or its validation.
MAX_STEP_S = 60.0

# How long `run_federation` waits by default for the sites in one round, and for their functions at the end.
DEFAULT_DEADLINE_S = 24 * 3600.0

SiteFunction = Callable[[MemoryExchange], None]

log = logging.getLogger("medfed.federation")

# The site whose function runs in this thread, so that no callback trains under another site's name.
_running_site: ContextVar[str] = ContextVar("medfed_running_site", default="")


class FederationSettings(TypedDict, total=False):
    """Further settings of `run_federation`; `HubConfig` says what each means.

    minimum: by default all sites.  deadline_s: by default 24 hours; None waits without end.  joins: the first
    round of each site that joins later than the others; it begins with the newest model.
    """

    privacy: Privacy
    minimum: int
    deadline_s: float | None
    seed: int
    classes: tuple[str, ...]
    selection: ModelSelection | None
    joins: Mapping[str, int]


def run_federation(
    sites: Mapping[str, SiteFunction],
    weights: Weights,
    *,
    rule: Rule | str,
    rounds: int,
    on_round: RoundCallback = lambda report: None,
    **settings: Unpack[FederationSettings],
) -> GlobalModel:
    """Return the final model of a federation of functions, one per site; each is given the exchange.

    A site's function runs a Trainer with a `FederatedCallback`. `rule` may be the name of a kind, for its
    defaults. If a function raises, its traceback is logged and its site drops out; so does the site of a
    function that returns before the last round. The rounds go on as long as `minimum` sites are left, by
    default all. A round waits for its sites, which train in turn, at most `deadline_s`, by default 24 hours;
    then functions that still run are given a minute, and at the study's end `deadline_s`. A KeyboardInterrupt
    at any site ends all. `settings` are those of `HubConfig`; `simulate` takes every setting of a hub.

    Raises:
        QuorumError: as soon as too few sites are left; its cause is the exception of the first that
            failed, its `model` the last merged one.
        SiteError: if too few functions ended well after the last round; with cause and `model` as above.
    """
    names = tuple(sorted(sites))
    defaults: dict[str, Any] = {"minimum": len(names), "deadline_s": DEFAULT_DEADLINE_S}
    config = HubConfig(rounds, names, kind_named("aggregation", rule), **{**defaults, **settings})
    shown = notebook_progress()
    score = config.selection.score if config.selection is not None else "val/loss"
    shown.start("federation in this process", dict.fromkeys(names, 0), rounds, score)

    def round_finished(report: RoundReport) -> None:
        shown.round(report)
        on_round(report)

    try:
        return simulate(sites, weights, config, on_round=round_finished)
    finally:
        shown.stop()


def simulate(
    sites: Mapping[str, SiteFunction],
    weights: Weights,
    config: HubConfig,
    *,
    folder: Path | None = None,
    on_round: RoundCallback = lambda report: None,
    on_model: ModelCallback = lambda current: None,
    audit: AuditLog | None = None,
    on_bytes: Callable[[bytes], None] | None = None,
) -> GlobalModel:
    """Return the final model of a federation of functions, with every setting of a hub (see `run_hub`).

    `on_bytes` is called with the bytes of everything that the exchange carries. The functions take turns,
    unless they are `TrainsElsewhere` (`worker_processes.py`).

    Raises:
        StudyError: if `config.sites` are not the sites that functions are given for.
        QuorumError: as soon as fewer sites than `config.minimum` are left (see `run_federation`).
        SiteError: if too few functions ended well after the last round; its `model` is the final one.
    """
    if set(config.sites) != set(sites):
        raise StudyError(
            f"simulate: HubConfig.sites are {', '.join(sorted(config.sites))}, functions are given for "
            f"{', '.join(sorted(sites))}; give one function for each site"
        )
    elsewhere = all(isinstance(one, TrainsElsewhere) for one in sites.values())
    scheduler = SitesElsewhere() if elsewhere else SiteScheduler()
    exchange = MemoryExchange(
        config.study_digest,
        idle=scheduler.idle,
        on_bytes=on_bytes,
        asynchronous=config.rule.asynchronous,
        secrets=None if folder is None else folder.with_name("sites"),
        parties=tuple(sorted(sites)),
        caller=_running_site.get,
        only_selected=_asks_some(config),
    )
    failures = SiteFailures(exchange, config)
    bar = RoundsBar(config.rounds) if len(sites) > 1 else None
    threads = [
        # Each site's thread knows the kinds of the study's plug-ins, as this one does.
        threading.Thread(
            target=copy_context().run,
            args=(_run_site, scheduler, failures, bar, *item),
            name=f"medfed-{item[0]}",
            daemon=True,
        )
        for item in sites.items()
    ]
    if len(sites) > MAX_POOLS:
        share_one_pool()
    for thread in threads:
        thread.start()

    def round_finished(report: RoundReport) -> None:
        if bar is not None:
            bar.round_finished()
        on_round(report)

    try:
        final = run_hub(
            config, exchange, weights, folder=folder, on_round=round_finished, on_model=on_model, audit=audit
        )
    except BaseException as error:
        # A thread that is still inside torch when the interpreter ends would abort the process.
        exchange.close()
        _join(threads, MAX_STEP_S)
        explained = failures.explain(error)
        if explained is None:
            raise
        raise explained from failures.cause
    finally:
        if bar is not None:
            bar.close()
    _join(threads, config.deadline_s)
    exchange.close()
    # Where the hub holds a part of the model encrypted, the model is returned as a site decrypts it.
    channel = SiteChannel(exchange, min(config.sites), final.round, parties=config.sites)
    model = config.privacy.decrypt(final, channel)
    failures.raise_after_end(model)
    return model


def _asks_some(config: HubConfig) -> bool:
    """Return whether a site may sleep until a round asks it to train: others do, and none agrees on keys."""
    rule = config.rule
    some = config.fraction < 1 or rule.max_sites == 1
    return some and config.privacy.reveals_each_update and not rule.asynchronous


class SiteFailures:
    """The sites whose functions raised or returned early, and the end of the study once they are too many."""

    def __init__(self, exchange: MemoryExchange, config: HubConfig) -> None:
        self.exchange = exchange
        self._config = config
        self._lock = threading.Lock()
        self._stopped: set[str] = set()
        self._first: tuple[str, BaseException] | None = None
        self._interruption: BaseException | None = None

    def first_model(self, site: str) -> int:
        """Return the round of the first model from which a site is asked to train."""
        return self._config.joins.get(site, 1) - 1

    @property
    def cause(self) -> BaseException | None:
        """What was raised at the site that failed first, an interruption before all others."""
        return self._interruption or (self._first[1] if self._first else None)

    def raised(self, site: str, error: BaseException) -> None:
        """Log what a site's function raised, and withdraw the site."""
        raised, known = type(error).__name__, {"site": site}
        log.error("site '%s' stopped: its function raised %s", site, raised, exc_info=error, extra=known)
        with self._lock:
            self._first = self._first or (site, error)
            if _is_interruption(error):
                self._interruption = error
        self._withdraw(site, detail_of(error))

    def returned(self, site: str) -> None:
        """Withdraw a site whose function has returned; nothing changes if the study has ended."""
        if self.exchange.closed:
            return
        if not self.exchange.finished:
            self._withdraw(
                site,
                "its function returned before the study's last round; it must run a Trainer with "
                f"FederatedCallback('{site}', exchange) whose max_epochs are rounds times local_epochs",
            )
        else:
            self.exchange.withdraw(site, "its function returned without scores of the final model")

    def _withdraw(self, site: str, reason: str) -> None:
        with self._lock:
            self._stopped.add(site)
            left = len(self._config.sites) - len(self._stopped)
        self.exchange.withdraw(site, reason)
        too_few = left < self._config.minimum and not self.exchange.finished
        # Where sites agree on keys, each first writes down its secrets, with which a resumed run repeats.
        at_once = self._config.privacy.reveals_each_update
        if (too_few and at_once) or self._interruption is not None:
            self.exchange.close()  # the other sites stop at their next step, not after hours of training

    def explain(self, error: BaseException) -> BaseException | None:
        """Return what is raised, with `cause`, instead of the hub's error; None if no site led to that."""
        if self._interruption is not None:
            return KeyboardInterrupt("a site was interrupted, which ends the study")
        if isinstance(error, QuorumError):
            error.model = self.exchange.newest_model
            return None if self.cause is None else error
        if isinstance(error, MedfedError) and self._first is not None and self._too_few:
            return self._site_error(self.exchange.newest_model)
        return None

    def raise_after_end(self, model: GlobalModel) -> None:
        """Raise what a function raised after the last round, if fewer sites than the minimum ended well."""
        if self._interruption is not None:
            raise KeyboardInterrupt("a site was interrupted after the last round") from self._interruption
        if self._first is not None and self._too_few:
            raise self._site_error(model) from self._first[1]

    @property
    def _too_few(self) -> bool:
        return len(self._config.sites) - len(self._stopped) < self._config.minimum

    def _site_error(self, model: GlobalModel | None) -> SiteError:
        assert self._first is not None
        site, cause = self._first
        error = SiteError(f"site '{site}': {detail_of(cause)}")
        error.model = model
        return error


def _is_interruption(error: BaseException) -> bool:
    """Return whether a site was interrupted.

    Lightning answers a KeyboardInterrupt by setting a signal handler, which Python allows in the main thread
    only: at a site a ValueError arrives, whose context is the interruption.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, (KeyboardInterrupt, SystemExit)):
        seen = seen.__context__
    return seen is not None


def _join(threads: Sequence[threading.Thread], timeout_s: float | None) -> None:
    """Wait for all sites' functions together, and log which have not returned by then."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    for thread in threads:
        thread.join(None if end is None else max(0.0, end - time.monotonic()))
    running = [thread.name.removeprefix("medfed-") for thread in threads if thread.is_alive()]
    if running:
        log.warning(
            "the study has ended, but after %g s the functions of these sites still run: %s; they are left",
            timeout_s,
            ", ".join(running),
        )


def _run_site(
    scheduler: SiteScheduler | SitesElsewhere,
    failures: SiteFailures,
    bar: RoundsBar | None,
    site: str,
    function: SiteFunction,
) -> None:
    _running_site.set(site)
    RUNNING_SITE.set(site)
    use_rounds_bar(bar)
    # Else oneDNN's layers take OpenMP's default here, whatever the caller set, and sums have other bits.
    torch.set_num_threads(torch.get_num_threads())
    try:
        # Each site builds its model when it is its turn to train from it, and not all of them before.
        failures.exchange.wait_for_model(failures.first_model(site), site)
        with scheduler.turn():
            function(failures.exchange)
            scheduler.forget(failures.exchange)
    except BaseException as error:  # noqa: BLE001 - it is logged, and decides about the study
        if isinstance(error, ExchangeError) and failures.exchange.closed:
            return  # the hub closed the study: its own error gives the reason
        failures.raised(site, error)
    else:
        failures.returned(site)
