"""A site's side of the memory exchange in a worker process of a simulation.

All sites of the worker share it, as all sites of a simulation without workers share the `MemoryExchange`.
Calls go to the process that has the hub; the hub's model and the sites' updates are mapped and written as
files in memory. Each model is decoded once in a worker, for all its sites.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import msgspec
import torch
from torch import Tensor

from medfed.errors import ExchangeError
from medfed.exchange._drop_out import DropOut
from medfed.exchange._exchange import Transmission
from medfed.exchange._worker_link import (
    Answer,
    Call,
    Connection,
    ModelSent,
    NamelessFile,
    Setup,
    error_of,
    nameless_file,
)
from medfed.exchange.memory import require_unwritten, versions_of
from medfed.wire import encoding
from medfed.wire.messages import Message
from medfed.wire.update import GlobalModel, Update

# Bytes of one round's updates that a worker writes to memory; more go to a file on disk.
MAX_MEMORY_BYTES = 256 << 20


class WorkerExchange:
    """The exchange as the sites of a worker process see it; `idle` is entered around every wait of a site."""

    signed = True
    in_one_process = True

    def __init__(
        self, link: Connection, setup: Setup, idle: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.parties, self.only_selected = setup.parties, setup.only_selected
        self.closed = False
        self._link, self._study, self._idle = link, setup.study_digest, idle
        self._answers: dict[str, SimpleQueue[tuple[Answer, _SharedModel | None]]] = {}
        self._model: _SharedModel | None = None
        self._updates = _UpdateFiles()

    # -- what the other process sends

    def site_begins(self, site: str) -> None:
        """Make ready for the answers to a site's calls."""
        self._answers[site] = SimpleQueue()

    def answered(self, answer: Answer) -> None:
        """Hand on the answer to a site's call."""
        self._answers[answer.site].put((answer, self._model))

    def model_came(self, sent: ModelSent, file: NamelessFile) -> None:
        """Take the model that the next answer is about."""
        self._model = _SharedModel(sent, file, self._study)

    # -- what a site calls

    @property
    def newest_model(self) -> GlobalModel | None:
        """The model that came last."""
        return None if self._model is None else self._model.decoded()

    def fetch(self, site: str, round: int) -> GlobalModel:
        # As in `MemoryExchange`: without waiting no other site trains meanwhile.
        while not (self.closed or self.call(site, "is_over", round)):
            with self._idle():
                self.closed |= self.call(site, "wait_for_model", round)
        answer, model = self._answer(site, "fetch", [round])
        assert model is not None, answer
        return model.decoded()

    def transmission(self, update: Update) -> Transmission:
        return Transmission("hub, in this process", *encoding.measure_update(update, self._study))

    def send(self, update: Update) -> None:
        head, *tensors = encoding.update_pieces(update, self._study)
        size = len(head) + sum(memoryview(piece).nbytes for piece in tensors)
        newest = -1 if self._model is None else self._model.number
        number, start, file = self._updates.write(tensors, newest)
        arguments = [update.round, bytes(head), number, start, size]
        self._answer(update.site, "send", arguments, (file.fileno(),))

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        self.call(site, "drop_out", DropOut(reason).value, detail)

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        self.call(site, "send_message", round, attempt, step, data)

    def sent_message(self, site: str, step: str) -> Message | None:
        return _message(self.call(site, "sent_message", step))

    def receive_message(self, site: str, round: int, min_attempts: Mapping[str, int]) -> Message | None:
        with self._idle():
            return _message(self.call(site, "receive_message", round, dict(min_attempts)))

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        return msgspec.convert(self.call(site, "open_message", sealed, party), Message)

    def retract(self, site: str, round: int) -> None:
        self.call(site, "retract", round)

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        self.call(site, "store_secret", name, secret)

    def load_secret(self, site: str, name: str) -> bytes | None:
        secret: bytes | None = self.call(site, "load_secret", name)
        return secret

    def call(self, site: str, method: str, *arguments: Any) -> Any:
        """Return what a call returns in the process of the hub; raise what it raises there."""
        return self._answer(site, method, list(arguments))[0].value

    def _answer(
        self, site: str, method: str, arguments: list[Any], files: tuple[int, ...] = ()
    ) -> tuple[Answer, _SharedModel | None]:
        if site not in self._answers:
            raise ExchangeError(
                f"site '{site}' is none of this worker's, which are {', '.join(self._answers)}"
            )
        self._link.send(Call(site, method, arguments), files)
        answer, model = self._answers[site].get()
        if answer.failure is not None:
            raise error_of(answer.failure)
        return answer, model


def _message(plain: Any) -> Message | None:
    return None if plain is None else msgspec.convert(plain, Message)


class _SharedModel:
    """The hub's model in memory that all workers map; decoded when the first site asks for it."""

    _numbers = 0

    def __init__(self, sent: ModelSent, file: NamelessFile, study: str) -> None:
        _SharedModel._numbers += 1
        self.number = _SharedModel._numbers
        self._sent, self._file, self._study = sent, file, study
        self._lock = threading.Lock()
        self._model: GlobalModel | None = None
        self._versions: dict[str, int] = {}

    def decoded(self) -> GlobalModel:
        """Return the model; all sites get the same tensors, which nobody may write to."""
        with self._lock:
            if self._model is None:
                model = encoding.join_global(self._sent.head, _Mapped(self._file), self._study)
                self._model = replace(model, sha256=self._sent.sha256)
                self._versions = versions_of(self._model)
                self._file.close()  # the mapping stays
            else:
                require_unwritten(self._model, self._versions)
            return self._model


class _Mapped:
    """A model's tensors, mapped together; pages that somebody wrote to would be this process's own."""

    def __init__(self, file: NamelessFile) -> None:
        size = os.fstat(file.fileno()).st_size
        self._mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else b""

    def read(self, name: str, first: int, last: int) -> Tensor:
        if last == first:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._mapping, dtype=torch.uint8, offset=first, count=last - first)


class _UpdateFiles:
    """The files to which a worker writes updates: one for each model trained from, or more if it is full.

    A file is closed, and its memory free, once the hub has dropped the updates of its round.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model = -2
        self._number, self._end, self._limit = 0, 0, 0
        self._file: NamelessFile | None = None

    def write(self, tensors: list[bytes | memoryview], model: int) -> tuple[int, int, NamelessFile]:
        """Write an update's tensors; return the file's number, where in it they begin, and the file."""
        with self._lock:
            if model != self._model:
                self._begin(in_memory=True)
                self._model = model
            elif self._end >= self._limit:
                self._begin(in_memory=False)
            assert self._file is not None
            start = self._end
            for piece in tensors:
                self._end = self._file.write(piece, self._end)
            self._end += -self._end % mmap.ALLOCATIONGRANULARITY
            return self._number, start, self._file

    def _begin(self, in_memory: bool) -> None:
        self._file = nameless_file(in_memory)
        self._number, self._end = self._number + 1, 0
        self._limit = MAX_MEMORY_BYTES if in_memory else 1 << 62
