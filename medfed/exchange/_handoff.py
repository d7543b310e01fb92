"""One folder through which a network's client hands messages to a trainer that keeps running.

Flower starts a process per message, so that process is only a bridge: it writes the message as a task, waits,
and returns the answer. The trainer holds model, data and caches for the whole run, and need not have the
network's packages; the bridge needs neither torch nor the data.

    task.safetensors        the message: the network's arrays, and which round of which run it is of
    reply-<task>.safetensors  the trainer's answer to that task: arrays and numbers
    reply-<task>.json       or why there is none, in one of the fixed words of `_drop_out.py`
    stopped.json            why the last trainer stopped for good
    bridge.lock             held by a bridge while it waits for an answer: a task without one is left over
    trainer.lock            held by the trainer while it runs

Files are written whole, with mode 0600 in a folder of mode 0700: bridge and trainer run under one account,
and the folder's permissions are what keeps others out. Arrays travel as safetensors, which runs no code.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from medfed.errors import ExchangeError
from medfed.files import is_locked, lock, private_folder, replacing, write_whole

log = logging.getLogger("medfed.exchange")

# The pause between two looks into the folder: a share of the time waited so far, within these bounds.
_POLL_SHARE, _MIN_POLL_S, _MAX_POLL_S = 0.05, 0.02, 0.5

# How long a lock is tried for: whoever tests it holds it for a moment.
_LOCK_TRIES, _LOCK_PAUSE_S = 20, 0.1

# The number by which FedAvg weights a site, under the name that Flower expects.
EXAMPLES = "num-examples"

Numbers = Mapping[str, float]
Arrays = Mapping[str, Any]


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of the network: train from its model in this round, or evaluate this round's merged model."""

    id: str
    run: str
    kind: Literal["train", "evaluate"]
    round: int

    @property
    def model_round(self) -> int:
        """How many merges its model has behind it."""
        return self.round - (self.kind == "train")

    def __str__(self) -> str:
        """Return how messages name this task."""
        return f"{self.kind} of round {self.round}"


@dataclass(frozen=True)
class Answer:
    """A trainer's answer: whole arrays (none for an evaluation) and numbers, or why there is none."""

    arrays: Arrays = field(default_factory=dict)
    numbers: Numbers = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Handoff:
    """A folder that one bridge and one trainer share."""

    folder: Path

    # -- the bridge

    def ask(self, task: Task, arrays: Arrays, restart_s: float) -> Answer:
        """Hand a task to the trainer and return its answer, waiting while there is a trainer.

        Without one it waits `restart_s` seconds for one to be started.
        """
        private_folder(self.folder)
        with (self.folder / "bridge.lock").open("w") as waiting:
            lock(waiting)
            self._clear()
            _write(self._task, arrays, task)
            try:
                return self._answer(task, restart_s)
            finally:
                self._clear()

    def _answer(self, task: Task, restart_s: float) -> Answer:
        began = seen = time.monotonic()
        if not self.has_trainer():
            log.warning("no trainer runs for the %s; one is awaited for %g s", task, restart_s)
        while True:
            if (answer := self._read_answer(task)) is not None:
                return answer
            if self.has_trainer():
                seen = time.monotonic()
            elif self._stopped.exists():
                return Answer(error=str(msgspec.json.decode(self._stopped.read_bytes(), type=str)))
            elif time.monotonic() - seen > restart_s:
                return Answer(error=f"no trainer of this site has run for {restart_s:g} s")
            _pause(began)

    def _read_answer(self, task: Task) -> Answer | None:
        refusal, reply = self._reply(task, ".json"), self._reply(task, ".safetensors")
        if refusal.exists():
            return Answer(error=str(msgspec.json.decode(refusal.read_bytes(), type=str)))
        if not reply.exists():
            return None
        arrays, numbers = _read(reply, dict[str, float | None])
        return Answer(arrays, {name: nan if value is None else value for name, value in numbers.items()})

    def has_trainer(self) -> bool:
        """Whether a trainer has opened this folder and still runs."""
        return is_locked(self.folder / "trainer.lock")

    def _clear(self) -> None:
        self._task.unlink(missing_ok=True)
        for reply in self.folder.glob("reply-*"):
            reply.unlink(missing_ok=True)

    # -- the trainer

    def become_trainer(self, site: str) -> IO[Any]:
        """Return a file whose lock says that this process is the folder's trainer; closing it ends that.

        Raises:
            ExchangeError: if another process is.
        """
        private_folder(self.folder)
        file = (self.folder / "trainer.lock").open("w")
        try:
            _try_lock(file)
        except BlockingIOError:
            file.close()
            raise ExchangeError(
                f"site '{site}': another process trains with this exchange folder, and only one may; stop it "
                "first, or give this one a folder of its own"
            ) from None
        self._stopped.unlink(missing_ok=True)
        return file

    def is_waiting(self, task: Task) -> bool:
        """Whether a bridge still waits for a task's answer."""
        try:
            return is_locked(self.folder / "bridge.lock") and _read_header(self._task, Task).id == task.id
        except FileNotFoundError:
            return False

    def wait_for_task(self, after: str, timeout_s: float) -> tuple[Task, Arrays] | None:
        """Return the task for which a bridge waits, other than `after`, or None when the time is over."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            if (found := self._waiting_task(after)) is not None:
                return found
            _pause(began)
        return None

    def _waiting_task(self, after: str) -> tuple[Task, Arrays] | None:
        if not self._task.exists() or not is_locked(self.folder / "bridge.lock"):
            return None
        try:
            task: Task = _read_header(self._task, Task)
            if task.id == after:
                return None
            return task, _read(self._task, Task)[0]
        except FileNotFoundError:  # the bridge gave up meanwhile
            return None

    def reply(self, task: Task, answer: Answer) -> None:
        """Answer a task; the bridge takes the first answer that it finds."""
        if answer.error:
            write_whole(self._reply(task, ".json"), msgspec.json.encode(answer.error))
        else:
            write_whole(self._reply(task, ".safetensors"), encode(answer))

    def stop(self, reason: str) -> None:
        """Say why no trainer answers from now on, until one is started again."""
        write_whole(self._stopped, msgspec.json.encode(reason))

    @property
    def _stopped(self) -> Path:
        return self.folder / "stopped.json"

    @property
    def _task(self) -> Path:
        return self.folder / "task.safetensors"

    def _reply(self, task: Task, suffix: str) -> Path:
        return self.folder / f"reply-{task.id}{suffix}"


def encode(answer: Answer) -> bytes:
    """Return an answer's arrays and numbers as safetensors, as a reply holds them; NaN is null in JSON."""
    from safetensors.numpy import save

    return bytes(save(_in_rows(answer.arrays), {"medfed": msgspec.json.encode(answer.numbers).decode()}))


def new_task(run: str, kind: Literal["train", "evaluate"], round: int) -> Task:
    """Return a task with an identifier of its own."""
    return Task(uuid.uuid4().hex, run, kind, round)


def _write(path: Path, arrays: Arrays, header: object) -> None:
    from safetensors.numpy import save_file

    with replacing(path) as aside:
        save_file(_in_rows(arrays), aside, {"medfed": msgspec.json.encode(header).decode()})


def _in_rows(arrays: Arrays) -> dict[str, Any]:
    """Return arrays in C's order: safetensors writes bytes as they lie, and would mix up another order's."""
    import numpy as np

    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _read(path: Path, header: Any) -> tuple[dict[str, Any], Any]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        return arrays, msgspec.json.decode(file.metadata()["medfed"], type=header)


def _read_header(path: Path, header: Any) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return msgspec.json.decode(file.metadata()["medfed"], type=header)


def _pause(began: float) -> None:
    time.sleep(min(max(_MIN_POLL_S, (time.monotonic() - began) * _POLL_SHARE), _MAX_POLL_S))


def _try_lock(file: IO[Any]) -> None:
    for _ in range(_LOCK_TRIES):
        try:
            lock(file, wait=False)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
    lock(file, wait=False)
