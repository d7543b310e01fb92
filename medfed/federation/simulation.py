"""All sites of a study in this process: real Trainers, the same callback, the memory exchange.

Sites are threads that take turns: one trains at a time, on all cores, and hands over while it waits at the
exchange. The random states of python, numpy and torch belong to a site and are put back when its turn comes
again; threads share one stream otherwise, and no run repeats.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfed.aggregation import Rule
from medfed.errors import ExchangeError
from medfed.exchange import MemoryExchange
from medfed.federation.callback import reason
from medfed.federation.hub import Plan, Watch, coordinate
from medfed.privacy import NoPrivacy, Privacy
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression
from medfed.wire.messages import SiteChannel
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, GlobalModel
from medfed.wire.weights import Weights

# How long a study that ends early waits for a site to see it: one step of training, or its validation.
LONGEST_STEP_S = 60.0


class Turns:
    """One site works at a time; the random states are its own."""

    def __init__(self) -> None:
        self._baton = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the baton for a site's whole work, and leave the random states to the next as they were."""
        with self._baton:
            states = _random_states()
            try:
                yield
            finally:
                _restore(states)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Hand over while waiting; what others did to the random states is undone on return."""
        states = _random_states()
        self._baton.release()
        try:
            yield
        finally:
            self._baton.acquire()
            _restore(states)


def _random_states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _restore(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])


def run_federation(
    sites: Mapping[str, Callable[[MemoryExchange], None]],
    weights: Weights,
    *,
    rule: Rule,
    rounds: int,
    privacy: Privacy | None = None,
    fraction: float = 1.0,
    minimum: int = 1,
    seed: int = 0,
    study: str = "",
    folder: Path | None = None,
    watch: Watch = lambda report: None,
    merged: Callable[[GlobalModel], None] = lambda current: None,
    audit: AuditLog | None = None,
    seen: Callable[[bytes], None] = lambda data: None,
    compress: Sequence[Compression] = (),
    outlier: float | None = DEFAULT_OUTLIER_FACTOR,
) -> GlobalModel:
    """Return the final model of a federation over functions, one a site, each given the
    exchange and its turn.

    A site's function runs a Trainer with a `FederatedCallback`. One that raises is withdrawn: the rounds go
    on without it where `minimum` allows.

    Raises:
        QuorumError: if too few sites are left.
    """
    turns = Turns()
    secrets = None if folder is None else folder.with_name("sites")
    exchange = MemoryExchange(
        study, idle=turns.idle, on_bytes=seen, asynchronous=rule.asynchronous, secrets=secrets
    )

    def run(site: str, function: Callable[[MemoryExchange], None]) -> None:
        try:
            with turns.turn():
                function(exchange)
        except ExchangeError:
            pass  # the hub closed the study: its own error says why
        except BaseException as error:
            exchange.withdraw(site, reason(error))

    plan = Plan(
        rounds=rounds,
        sites=tuple(sorted(sites)),
        rule=rule,
        privacy=privacy or NoPrivacy(),
        fraction=fraction,
        minimum=minimum,
        seed=seed,
        study=study,
        compress=tuple(compress),
        outlier=outlier,
    )
    threads = [
        threading.Thread(target=run, args=item, name=f"medfed-{item[0]}", daemon=True)
        for item in sites.items()
    ]
    for thread in threads:
        thread.start()
    try:
        final = coordinate(plan, exchange, weights, folder=folder, watch=watch, merged=merged, audit=audit)
    except BaseException:
        # A thread that is still inside torch when the interpreter ends would abort the process.
        exchange.close()
        for thread in threads:
            thread.join(LONGEST_STEP_S)
        raise
    for thread in threads:
        thread.join()
    exchange.close()
    # Where the hub holds a part of the model encrypted, the model is a site's.
    return plan.privacy.decrypt(final, SiteChannel(exchange, plan.sites[0], final.round))
