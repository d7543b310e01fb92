"""Lets the sites of one process train in turn, each with random states of its own."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from medfed.exchange import MemoryExchange
from medfed.exchange._idle_threads import end_idle_threads
from medfed.federation.allocator import FreedMemory
from medfed.wire.update import GlobalModel
from medfed.wire.weights import size_in_bytes

# How much the models of ended sites take before they are searched for and freed, which takes a while.
MAX_UNCOLLECTED_BYTES = 256 << 20


class HasModel(Protocol):
    """An exchange of this process, which knows the hub's newest model."""

    @property
    def newest_model(self) -> GlobalModel | None: ...


@dataclass(frozen=True)
class TrainsElsewhere:
    """A site's function that trains it in another process, and needs no turn in this one."""

    train: Callable[[MemoryExchange], None]

    def __call__(self, exchange: MemoryExchange) -> None:
        """Train the site."""
        self.train(exchange)


class SitesElsewhere:
    """Lets all sites' functions run at once, which train in other processes."""

    def forget(self, exchange: HasModel) -> None:
        """Do nothing: no model of a site is in this process."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run a site's whole work."""
        yield

    idle = turn


class SiteScheduler:
    """Lets one site train at a time, with random states of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uncollected = 0
        self._freed = FreedMemory()

    def forget(self, exchange: HasModel) -> None:
        """Free the models of sites that have ended, which their Trainers' circular references keep."""
        model = exchange.newest_model
        self._uncollected += 0 if model is None else size_in_bytes(model.weights)
        if self._uncollected > MAX_UNCOLLECTED_BYTES:
            gc.collect()
            self._uncollected = 0
            self._freed.give_back()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run a site's whole work, and restore the random states for the next site."""
        with self._lock:
            states = _random_states()
            try:
                yield
            finally:
                end_idle_threads()
                _restore(states)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Let other sites train while this one waits, then restore its random states."""
        states = _random_states()
        end_idle_threads()
        self._freed.give_back()
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
