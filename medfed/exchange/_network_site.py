"""A site's side in a network that others lead: their hub sends whole models and merges by plain FedAvg.

medfed's callback speaks of a difference to a global model and of rounds that it asks for; the network hands
out tasks. This file translates: what a site trained is sent as its own bits; what a privacy mechanism changed
is global + difference, computed in float64 and rounded once to the network's dtype. What a network cannot
carry is refused: key agreements, further groups of tensors, compression.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor

from medfed.errors import ExchangeError, StudyError, UpdateError
from medfed.exchange._drop_out import DropOut
from medfed.exchange._exchange import Transmission
from medfed.exchange._handoff import EXAMPLES, Answer, Task, encode
from medfed.files import PRIVATE_FILE, private_folder, write_whole
from medfed.wire.messages import Message
from medfed.wire.untrusted_text import for_log
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference

log = logging.getLogger("medfed.exchange")

# The network's dtypes whose tensors are merged; others are returned as they came.
_MERGED = ("float16", "float32", "float64")


class Link(Protocol):
    """How tasks of a network reach this process, and answers leave it; one task is open at a time."""

    @property
    def network(self) -> str:
        """What messages call the network, such as 'the Flower network'."""
        ...

    def next_task(self, timeout_s: float) -> tuple[Task, Mapping[str, Any]] | None:
        """Return the newest task that was not answered yet, with its NumPy arrays, waiting for one.

        None means that the time is over, or that the network has ended its run (`ended`).
        """
        ...

    @property
    def ended(self) -> bool:
        """Whether the network is known to have ended its run."""
        ...

    def is_open(self, task: Task) -> bool:
        """Whether the network still waits for this task's answer, as far as this process can tell."""
        ...

    def answer(self, task: Task, answer: Answer) -> None:
        """Answer a task."""
        ...

    def stop(self, reason: str) -> None:
        """Answer all tasks to come by this reason, until a trainer is started again."""
        ...

    def close(self) -> None:
        """Leave the network; what was answered remains."""
        ...


@dataclass(frozen=True)
class Agreement:
    """What a site and the leader of a network agree on beforehand.

    rounds: how many rounds the network merges; the model after the last one is the final one.  prefix: what
    this site's tensor names have before the network's (`net.` where the network's `conv.weight` is this
    module's `net.conv.weight`).  unchanged: tensors of the network that this site returns as they came, by a
    part of their dotted name, besides integers.  metrics: the numbers that go with every update; every site
    of a network must send the same.
    """

    rounds: int
    prefix: str = ""
    unchanged: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    def returns(self, name: str) -> bool:
        """Whether a tensor of this name is returned as it came."""
        return any(f".{part}." in f".{name}." for part in self.unchanged)


class _Known(msgspec.Struct, frozen=True):
    """What survives a restart: the network's run, which of its tensors came as integers, and the examples.

    FedAvg turns integers into floats, so only a run's first model shows which they are.
    """

    run: str = ""
    integers: list[str] = []
    examples: int = 1


class NetworkSite:
    """A site's side of an exchange whose hub is another framework's."""

    signed = False
    closed = False
    own_hub = False
    parties: tuple[str, ...] = ()

    def __init__(self, link: Link, site: str, folder: Path, agreement: Agreement) -> None:
        self._link, self._site, self._agreement = link, site, agreement
        self._folder = folder / "exchange"
        # How long a wait for the network may last, in seconds.
        self.max_wait_s = 24 * 3600.0
        self._open: tuple[Task, Mapping[str, Any]] | None = None
        self._sent_round = 0
        self._finished = False
        self._told: set[str] = set()

    # -- models and updates

    def fetch(self, site: str, round: int) -> GlobalModel:
        began = time.monotonic()
        while True:
            task, arrays = self._task(f"the model of round {round}", began)
            final = task.model_round == self._agreement.rounds
            if task.model_round < round:
                self._answer_old(task)
            elif task.kind == "train" and final:
                self._answer(task, Answer(error="more rounds than this site agreed to"))
                raise ExchangeError(
                    f"{self._who}: {self._link.network} begins round {task.round}, and this site agreed to "
                    f"{self._agreement.rounds} (exchange: rounds); agree with its leader on one number"
                )
            elif task.kind == "train" or final:
                self._finished = final
                return self._model(task, arrays, final)
            else:  # scores of a model before the last go with the next update
                self._answer(task, Answer(numbers=self._numbers))

    def transmission(self, update: Update) -> Transmission:
        task, arrays = self._task_of(update)
        if task is None:
            return Transmission(f"nobody: {self._link.network} waits no more for this round", 0, "", ())
        answer = self._answer_of(update, task, arrays)
        data, names = encode(answer), tuple(name for name in answer.numbers if name != EXAMPLES)
        # The network encodes the same arrays and numbers once more, in its own way.
        to = f"{self._link.network} (described as safetensors)"
        return Transmission(to, len(data), hashlib.sha256(data).hexdigest(), names)

    def send(self, update: Update) -> None:
        if not update.evaluation_only and update.round <= self._sent_round:
            return
        task, arrays = self._task_of(update)
        if task is None:
            if not update.evaluation_only:
                self._tell(
                    f"{self._link.network} no longer waits for the update of round {update.round}, which is "
                    "not sent; this site goes on with the next model"
                )
            return
        self._answer(task, self._answer_of(update, task, arrays))
        if not update.evaluation_only:
            self._sent_round = update.round
            self._remember(examples=update.examples)

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        """Answer the open task, and those to come, by one of the fixed words."""
        if self._open is not None:
            self._answer(self._open[0], Answer(error=DropOut(reason).value))
        self._link.stop(DropOut(reason).value)

    def close(self) -> None:
        """Leave the network; a last evaluation that nobody scored is answered without scores."""
        if self._open is not None and self._open[0].kind == "evaluate":
            self._answer(self._open[0], Answer(numbers=self._numbers))
        if self._finished:
            self._link.stop("this site has trained all rounds that it agreed to")
        self._link.close()

    # -- tasks

    def _task(self, what: str, began: float) -> tuple[Task, Mapping[str, Any]]:
        """Return the open task, waiting for one if there is none or the network has given it up."""
        if self._open is not None and not self._link.is_open(self._open[0]):
            self._open = None
        if self._open is None:
            log.info(
                "%s waits for %s, at most %.0f s, from %s",
                self._who,
                what,
                self.max_wait_s,
                self._link.network,
            )
        while self._open is None:
            found = self._link.next_task(max(0.0, began + self.max_wait_s - time.monotonic()))
            if found is None:
                raise ExchangeError(self._why_none(what, time.monotonic() - began))
            if self._is_of_this_run(*found):
                self._open = found
        return self._open

    def _why_none(self, what: str, waited_s: float) -> str:
        if self._link.ended:
            return (
                f"{self._who} waits for {what}, and {self._link.network} has ended its run without sending "
                "it: the merged model is with the network's leader. Ask that the last round's model be sent "
                "for evaluation, which is how a site gets it"
            )
        return (
            f"{self._who} waited {waited_s:.0f} s for {what}; nothing came from {self._link.network}: ask "
            "its leader whether the run goes on, and look whether this site's client is connected"
        )

    def _is_of_this_run(self, task: Task, arrays: Mapping[str, Any]) -> bool:
        """Keep to one run: another one begins with other weights, and its rounds count anew."""
        known = self._known
        if known is None or not known.run:
            integers = sorted(name for name, array in arrays.items() if array.dtype.kind in "iub")
            self._remember(run=task.run, integers=integers)
        elif known.run != task.run:
            self._link.answer(task, Answer(error="this site's trainer takes part in another run"))
            raise ExchangeError(
                f"{self._who}: {self._link.network} has begun another run ({for_log(task.run, 40)}) than the "
                f"one that this site trains in ({for_log(known.run, 40)}), which cannot be resumed there; to "
                "take part in the new one, start again with another folder"
            )
        return True

    @property
    def _known(self) -> _Known | None:
        path = self._folder / "network.json"
        return msgspec.json.decode(path.read_bytes(), type=_Known) if path.exists() else None

    def _remember(self, **changes: Any) -> None:
        known = msgspec.structs.replace(self._known or _Known(), **changes)
        private_folder(self._folder)
        write_whole(self._folder / "network.json", msgspec.json.encode(known))

    @property
    def _numbers(self) -> dict[str, float]:
        """The weight of this site's scores: the examples that it last trained on."""
        return {EXAMPLES: (self._known or _Known()).examples}

    def _task_of(self, update: Update) -> tuple[Task | None, Mapping[str, Any]]:
        """Return the task that an update answers, or None if the network waits for another one by now."""
        self._require_plain(update)
        if update.evaluation_only:
            return self._open if self._open is not None and self._open[0].kind == "evaluate" else (None, {})
        began = time.monotonic()
        while True:
            task, arrays = self._task(f"the training of round {update.round}", began)
            if (task.kind, task.round) == ("train", update.round):
                return task, arrays
            if task.round > update.round or (task.kind, task.round) == ("evaluate", update.round):
                return None, {}
            self._answer_old(task)

    def _require_plain(self, update: Update) -> None:
        if update.encoded is not None or update.groups:
            held = "compressed tensors" if update.encoded is not None else "further groups of tensors"
            raise UpdateError(
                f"{update}: it holds {held}, and {self._link.network} carries whole models and numbers only; "
                "leave compress, and methods of two halves such as scaffold, out"
            )

    def _answer_old(self, task: Task) -> None:
        """Answer a task whose round is behind this site's."""
        if task.kind == "evaluate":
            self._answer(task, Answer(numbers=self._numbers))
        else:
            self._answer(task, Answer(error="this site has trained in that round already"))

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            log.warning("%s: %s", self._who, sentence)

    def _answer(self, task: Task, answer: Answer) -> None:
        self._link.answer(task, answer)
        self._open = None

    # -- translation

    def _returned(self, name: str) -> bool:
        known = self._known
        return self._agreement.returns(name) or (known is not None and name in known.integers)

    def _model(self, task: Task, arrays: Mapping[str, Any], final: bool) -> GlobalModel:
        weights: dict[str, Tensor] = {}
        for name in arrays:
            if self._returned(name):
                continue
            if str(arrays[name].dtype) not in _MERGED:
                raise StudyError(
                    f"{self._who}: '{for_log(name, 80)}' of {self._link.network}'s model has dtype "
                    f"{for_log(str(arrays[name].dtype), 20)}, expected one of {', '.join(_MERGED)}; if this "
                    "module has no such tensor, list a part of its name under `unchanged`"
                )
            weights[self._agreement.prefix + name] = torch.from_numpy(arrays[name])
        return GlobalModel(task.model_round, weights, final=final, rule="fedavg")

    def _answer_of(self, update: Update, task: Task, arrays: Mapping[str, Any]) -> Answer:
        scalars, names = update.scalars, self._agreement.metrics
        if update.evaluation_only:
            return Answer(numbers=self._numbers | {name: scalars[name] for name in names if name in scalars})
        for name in names:
            if name not in scalars:
                self._tell(
                    f"the update of round {update.round} has no number '{name}', which it agreed to send "
                    "(exchange: metrics): it is sent as NaN, because the network merges no numbers of which "
                    "one is missing"
                )
        numbers = {EXAMPLES: update.examples, **{name: scalars.get(name, nan) for name in names}}
        return Answer({name: self._sent(name, array, update) for name, array in arrays.items()}, numbers)

    def _sent(self, name: str, array: Any, update: Update) -> Any:
        if self._returned(name):
            return array
        own = self._agreement.prefix + name
        if isinstance(update.delta, Difference):
            weights = update.delta.minuend[own]
        else:
            weights = torch.from_numpy(array).double() + update.delta[own].double()
        return weights.double().numpy().astype(array.dtype)

    # -- what a network does not carry

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        raise self._no_messages()

    def sent_message(self, site: str, step: str) -> Message | None:
        return None

    def receive_message(self, site: str, round: int, min_attempts: Mapping[str, int]) -> Message | None:
        raise self._no_messages()

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        raise self._no_messages()

    def retract(self, site: str, round: int) -> None:
        raise self._no_messages()

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        private_folder(self._folder)
        write_whole(self._folder / f"{name}.secret", secret, mode=PRIVATE_FILE)

    def load_secret(self, site: str, name: str) -> bytes | None:
        path = self._folder / f"{name}.secret"
        return path.read_bytes() if path.exists() else None

    def _no_messages(self) -> ExchangeError:
        return ExchangeError(
            f"{self._who}: {self._link.network} carries models and updates only, and this privacy "
            "mechanism's sites agree on keys; take 'none' or 'dp_sgd', or one of medfed's own exchanges"
        )

    @property
    def _who(self) -> str:
        return f"site '{self._site}'"
