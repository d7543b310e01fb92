"""Answers the calls of a worker process's sites from the memory exchange, in the process that has the hub."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec

from medfed.exchange._update_store import stored_in
from medfed.exchange._worker_link import (
    Answer,
    Call,
    Connection,
    ModelSent,
    NamelessFile,
    failure_of,
    nameless_file,
)
from medfed.exchange.memory import MemoryExchange
from medfed.wire import encoding
from medfed.wire.update import GlobalModel

# The methods of the exchange that a site in a worker calls as they are.
_METHODS = frozenset(
    (
        "drop_out",
        "send_message",
        "sent_message",
        "receive_message",
        "open_message",
        "retract",
        "store_secret",
        "load_secret",
    )
)


class SharedModels:
    """Writes each of the hub's models once to memory that all workers map."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: tuple[GlobalModel, bytes, NamelessFile] | None = None

    def shared(self, model: GlobalModel) -> tuple[bytes, NamelessFile]:
        """Return the head of a model's encoding, and the file with its tensors."""
        with self._lock:
            if self._newest is None or self._newest[0] is not model:
                head, *tensors = encoding.global_pieces(model)
                file, end = nameless_file(in_memory=True), 0
                for piece in tensors:
                    end = file.write(piece, end)
                self._newest = model, bytes(head), file
            return self._newest[1], self._newest[2]


class WorkerCalls:
    """One worker's calls; `own` answers those that are not of the exchange, such as the audit log's."""

    def __init__(self, link: Connection, models: SharedModels, own: Callable[[Call], Any]) -> None:
        self._link, self._models, self._own = link, models, own
        self._lock = threading.Lock()
        self._sent: GlobalModel | None = None
        # The newest file with updates, and its number in the worker.
        self._updates: tuple[int, NamelessFile] | None = None

    def file_of(self, call: Call, came: NamelessFile) -> NamelessFile:
        """Return the file with an update; the one that came may be another descriptor of a file known.

        Called in the order of the calls: all updates of a worker's file need one descriptor here.
        """
        number = call.arguments[2]
        if self._updates is None or self._updates[0] != number:
            self._updates = number, came
        return self._updates[1]

    def answer(self, call: Call, exchange: MemoryExchange, file: NamelessFile | None) -> None:
        """Answer a call; what it raises is raised at the site.

        Raises:
            OSError: if the worker has died.
        """
        try:
            if call.method == "fetch":
                return self._answer_fetch(call, exchange)
            value = self._returned(call, exchange, file)
        except Exception as error:  # noqa: BLE001 - the site decides, in its process
            self._link.send(Answer(call.site, failure=failure_of(error)))
        else:
            self._link.send(Answer(call.site, value))
        return None

    def _returned(self, call: Call, exchange: MemoryExchange, file: NamelessFile | None) -> Any:
        if call.method == "send":
            assert file is not None
            round, head, _, start, size = call.arguments
            exchange.send_stored(call.site, round, stored_in(file, start, head, size))
            return None
        if call.method == "is_over":
            return exchange.is_over(call.arguments[0], call.site)
        if call.method == "wait_for_model":
            exchange.wait_for_model(call.arguments[0], call.site)
            return exchange.closed
        if call.method not in _METHODS:
            return self._own(call)
        arguments = (call.site, *call.arguments)
        return msgspec.to_builtins(getattr(exchange, call.method)(*arguments), builtin_types=(bytes,))

    def _answer_fetch(self, call: Call, exchange: MemoryExchange) -> None:
        model = exchange.fetch(call.site, *call.arguments)
        head, file = self._models.shared(model)
        with self._lock:  # no other model comes between this one and the answer
            if self._sent is not model:
                self._link.send(ModelSent(head, model.sha256), (file.fileno(),))
                self._sent = model
            self._link.send(Answer(call.site))
