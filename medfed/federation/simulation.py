"""All sites of a study in one process: real Trainers, the same callback, the memory exchange.

Sites are threads that take turns: one trains at a time, on all cores, and hands over while it waits at the
exchange. Each site has its own random states of Python, NumPy and torch, restored when its turn comes;
otherwise the threads would share one stream and no run would repeat.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfed.aggregation import Rule
from medfed.errors import ExchangeError, StudyError
from medfed.exchange import MemoryExchange, detail_of, reason_of
from medfed.federation.config import HubConfig
from medfed.federation.hub import ModelCallback, RoundCallback, run_hub
from medfed.privacy import NoPrivacy, Privacy
from medfed.wire.audit_log import AuditLog
from medfed.wire.messages import SiteChannel
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# How long a study that ends early waits for a site to notice it: one step of training, or its validation.
MAX_STEP_S = 60.0

SiteFunction = Callable[[MemoryExchange], None]


class SiteScheduler:
    """Lets one site train at a time, with random states of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run a site's whole work, and restore the random states for the next site."""
        with self._lock:
            states = _random_states()
            try:
                yield
            finally:
                _restore(states)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Let other sites train while this one waits, then restore its random states."""
        states = _random_states()
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            _restore(states)


def _random_states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _restore(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])


def run_federation(
    sites: Mapping[str, SiteFunction],
    weights: Weights,
    *,
    rule: Rule,
    rounds: int,
    privacy: Privacy | None = None,
    minimum: int = 1,
    seed: int = 0,
    on_round: RoundCallback = lambda report: None,
) -> GlobalModel:
    """Return the final model of a federation of functions, one per site; each is given the exchange.

    A site's function runs a Trainer with a `FederatedCallback`. If one raises, its site drops out: the rounds
    go on without it as long as `minimum` sites are left. `simulate` takes every setting of a hub.

    Raises:
        QuorumError: if too few sites are left.
    """
    names = tuple(sorted(sites))
    config = HubConfig(rounds, names, rule, privacy or NoPrivacy(), minimum=minimum, seed=seed)
    return simulate(sites, weights, config, on_round=on_round)


def simulate(
    sites: Mapping[str, SiteFunction],
    weights: Weights,
    config: HubConfig,
    *,
    folder: Path | None = None,
    on_round: RoundCallback = lambda report: None,
    on_model: ModelCallback = lambda current: None,
    audit: AuditLog | None = None,
    on_bytes: Callable[[bytes], None] = lambda data: None,
) -> GlobalModel:
    """Return the final model of a federation of functions, with every setting of a hub (see `run_hub`).

    `on_bytes` is called with the bytes of everything that the exchange carries.

    Raises:
        StudyError: if `config.sites` are not the sites that functions are given for.
        QuorumError: if too few sites are left.
    """
    if set(config.sites) != set(sites):
        raise StudyError(
            f"simulate: HubConfig.sites are {', '.join(sorted(config.sites))}, functions are given for "
            f"{', '.join(sorted(sites))}; give one function for each site"
        )
    scheduler = SiteScheduler()
    exchange = MemoryExchange(
        config.study,
        idle=scheduler.idle,
        on_bytes=on_bytes,
        asynchronous=config.rule.asynchronous,
        secrets=None if folder is None else folder.with_name("sites"),
        parties=tuple(sorted(sites)),
    )
    threads = [
        threading.Thread(
            target=_run_site, args=(scheduler, exchange, *item), name=f"medfed-{item[0]}", daemon=True
        )
        for item in sites.items()
    ]
    for thread in threads:
        thread.start()
    try:
        final = run_hub(
            config, exchange, weights, folder=folder, on_round=on_round, on_model=on_model, audit=audit
        )
    except BaseException:
        # A thread that is still inside torch when the interpreter ends would abort the process.
        exchange.close()
        for thread in threads:
            thread.join(MAX_STEP_S)
        raise
    for thread in threads:
        thread.join()
    exchange.close()
    # Where the hub holds a part of the model encrypted, the model is returned as a site decrypts it.
    return config.privacy.decrypt(final, SiteChannel(exchange, min(config.sites), final.round))


def _run_site(scheduler: SiteScheduler, exchange: MemoryExchange, site: str, function: SiteFunction) -> None:
    try:
        with scheduler.turn():
            function(exchange)
    except ExchangeError:
        pass  # the hub closed the study: its own error gives the reason
    except BaseException as error:  # noqa: BLE001 - the reason goes to the hub, which decides
        exchange.drop_out(site, reason_of(error), detail_of(error))
