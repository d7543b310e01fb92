"""A connection between the process that has the hub and a worker that is a Ray actor.

Records go as arguments and results of the actor's methods. The hub's model goes once per node into Ray's
object store, from which each worker of the node copies it. An update comes back as a result, and is written
to a file without a name, as that of a worker process is.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections import deque
from collections.abc import Sequence
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from medfed.exchange._worker_link import (
    Call,
    Frame,
    ModelSent,
    NamelessFile,
    decode_frame,
    encode_frame,
    nameless_file,
)

log = logging.getLogger("medfed.federation")

# The threads of an actor, each with a queue of calls of its own: what comes in, and what goes out.
GROUPS = {"in": 1, "out": 1}

# A record as it travels, and the bytes of the file that belongs to it.
_Parcel = tuple[bytes, Any]


def _bytes_of(descriptor: int, start: int = 0, size: int | None = None) -> np.ndarray[Any, Any]:
    """Return bytes of a file, mapped; `start` is a multiple of `mmap.ALLOCATIONGRANULARITY`."""
    size = os.fstat(descriptor).st_size - start if size is None else size
    mapping = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, offset=start) if size else b""
    return np.frombuffer(mapping, np.uint8)


class WorkerActor:
    """What Ray runs of a worker: its module's `main` in a thread, and the queues that this talks to."""

    def __init__(self, module: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._end = _ActorEnd()
        main = import_module(module).main
        threading.Thread(target=self._run, args=(main,), name="medfed-worker", daemon=True).start()

    def _run(self, main: Any) -> None:
        try:
            main(self._end)
        finally:
            self._end.outgoing.put(None)

    def about(self) -> tuple[str, int]:
        """Return the id of the node and of the process."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def put(self, number: int, data: bytes, held: list[Any]) -> None:
        """Take a record; `held` has the reference to what belongs to it in the object store."""
        self._end.incoming.put((number, data, held))

    def next(self) -> list[_Parcel | None]:
        """Wait for a record of this worker; return all that are there, None as the last one of all."""
        found = [self._end.outgoing.get()]
        while True:
            try:
                found.append(self._end.outgoing.get_nowait())
            except Empty:
                return found


class _ActorEnd:
    """The worker's end, a `Connection`."""

    def __init__(self) -> None:
        self.incoming: SimpleQueue[tuple[int, bytes, list[Any]]] = SimpleQueue()
        self.outgoing: SimpleQueue[_Parcel | None] = SimpleQueue()
        self._early: dict[int, tuple[bytes, list[Any]]] = {}
        self._received = 0

    def send(self, frame: Frame, files: Sequence[int] = ()) -> None:
        payload = None
        if files:
            assert isinstance(frame, Call)
            _, head, _, start, size = frame.arguments
            payload = _bytes_of(files[0], start, size - len(head))
        self.outgoing.put((encode_frame(frame), payload))

    def receive(self) -> tuple[Frame, list[NamelessFile]] | None:
        # Ray may run calls of an actor with several threads in another order than that of the caller.
        while self._received not in self._early:
            number, data, held = self.incoming.get()
            self._early[number] = data, held
        data, held = self._early.pop(self._received)
        self._received += 1
        return decode_frame(data), [_copied(one) for one in held]

    def shut(self) -> None:
        """Do nothing: the other process ends this one."""

    close = shut


def _copied(reference: Any) -> NamelessFile:
    """Return a file with what the object store holds: a worker that wrote to the store itself would die."""
    import ray

    file = nameless_file(in_memory=True)
    file.write(memoryview(ray.get(reference)), 0)
    return file


class NodeModels:
    """The hub's newest model in Ray's object store, which carries it once to each node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: tuple[tuple[str, int], Any] | None = None

    def reference(self, sent: ModelSent, descriptor: int) -> Any:
        """Return the reference to the model in a file."""
        import ray

        key = sent.sha256, os.fstat(descriptor).st_ino
        with self._lock:
            if self._newest is None or self._newest[0] != key:
                self._newest = key, ray.put(_bytes_of(descriptor))
            return self._newest[1]


class HubEnd:
    """The end of the process that has the hub, a `Connection`."""

    def __init__(self, actor: Any, models: NodeModels) -> None:
        self._actor, self._models = actor, models
        self._sending, self._sent = threading.Lock(), 0
        self._parcels: deque[_Parcel | None] = deque()
        self._updates = _UpdatesHere()
        self.ended = threading.Event()
        self.error: Exception | None = None

    def send(self, frame: Frame, files: Sequence[int] = ()) -> None:
        held = []
        if files:
            assert isinstance(frame, ModelSent)
            held = [self._models.reference(frame, files[0])]
        with self._sending:
            if self.ended.is_set():
                raise OSError("the worker has ended")
            put = self._actor.put.options(concurrency_group="in")
            put.remote(self._sent, encode_frame(frame), held)
            self._sent += 1

    def receive(self) -> tuple[Frame, list[NamelessFile]] | None:
        import ray

        try:
            if not self._parcels:
                found = self._actor.next.options(concurrency_group="out").remote()
                self._parcels.extend(ray.get(found))
            parcel = self._parcels.popleft()
        except Exception as error:
            self.error, parcel = error, None
            log.debug("a worker's Ray actor has ended", exc_info=True)
        if parcel is None:
            self.ended.set()
            return None
        frame = decode_frame(parcel[0])
        if parcel[1] is None:
            return frame, []
        assert isinstance(frame, Call)
        return frame, [self._updates.written(frame, parcel[1])]

    def shut(self) -> None:
        """Let the actor end; its end is what `receive` is told by."""
        import ray

        if ray.is_initialized():
            ray.kill(self._actor, no_restart=True)

    def close(self) -> None:
        """Do nothing: the actor is Ray's."""


class _UpdatesHere:
    """Writes updates to files of this process that are numbered, and filled, as those of the worker are."""

    def __init__(self) -> None:
        self._number, self._round = 0, -1
        self._file: NamelessFile | None = None

    def written(self, call: Call, tensors: np.ndarray[Any, Any]) -> NamelessFile:
        """Return the file in which an update's tensors now lie where the call says."""
        round, _, number, start, _ = call.arguments
        if self._file is None or number != self._number:
            # A worker's first file of a round is in memory, any further one on disk.
            self._file = nameless_file(in_memory=round != self._round)
            self._number, self._round = number, round
        self._file.write(tensors.data, start)
        return self._file
