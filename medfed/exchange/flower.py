"""A site in a Flower network (https://flower.ai), which others lead and whose strategy merges.

    the trainer   with medfed.open_site(Flower(rounds=3, handoff="handoff"), "north", ...) as exchange: ...
    the bridge    `client_app()` in the Flower app, in a SuperNode that is started with
                  --node-config 'medfed-folder="/srv/medfed/handoff"'

Flower starts a process per message, in which torch and the data cache would be lost each round. So that
process only hands the message to the trainer through a folder (`_handoff.py`) and returns its answer: it
imports neither torch nor any code of training, and the trainer needs none of Flower's packages.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn

import msgspec

from medfed.errors import ExchangeError, WireError
from medfed.exchange._handoff import Answer, Handoff, Task, new_task
from medfed.exchange._record import Exchange, no_hub, no_study

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medfed.exchange._network_site import NetworkSite

log = logging.getLogger("medfed.exchange")

# The key under which a SuperNode's configuration names the folder shared with the trainer.
FOLDER_KEY = "medfed-folder"

# How long the bridge waits for a trainer that is being started again.
DEFAULT_RESTART_S = 600.0

# A round beyond this is no strategy's.
MAX_ROUND = 1_000_000

# Flower's code of a ClientApp that raised an exception.
CLIENT_ERROR = 2


class Flower(Exchange, frozen=True, tag="flower"):
    """A Flower network that others lead: this site trains in it, and the network's FedAvg merges.

    `rounds` is the number of rounds that the network runs, on which site and leader agree. `handoff` is the
    folder that this trainer shares with the SuperNode. `prefix` is what this module's tensor names have
    before the network's; `unchanged` are tensors of the network that this site returns as they came, by a
    part of their name (integers always are); `metrics` are the numbers sent with every update, such as
    train/loss, the same at every site of the network.
    """

    own_hub: ClassVar[bool] = False

    rounds: Annotated[int, msgspec.Meta(ge=1)]
    handoff: str
    prefix: str = ""
    unchanged: tuple[str, ...] = ("num_batches_tracked",)
    metrics: tuple[str, ...] = ()

    def addresses(self) -> tuple[str, ...]:
        return (self.handoff,)

    def open_hub(self, study_digest: str, folder: Path) -> NoReturn:
        raise ExchangeError(no_hub("flower", "a Flower SuperLink and its ServerApp"))

    def open_site(self, study_digest: str, site: str, folder: Path) -> NetworkSite:
        from medfed.exchange._network_site import Agreement, NetworkSite

        agreement = Agreement(self.rounds, self.prefix, self.unchanged, self.metrics)
        return NetworkSite(_Trainer(Path(self.handoff), site), site, folder, agreement)

    def offered_studies(self, site: str, **asked: object) -> NoReturn:
        raise ExchangeError(no_study("flower"))


class _Trainer:
    """The trainer's end of the folder."""

    network = "the Flower network"
    ended = False  # nobody tells a site that a run is over

    def __init__(self, folder: Path, site: str) -> None:
        self._handoff = Handoff(folder)
        self._lock = self._handoff.become_trainer(site)
        self._answered = ""

    def next_task(self, timeout_s: float) -> tuple[Task, Mapping[str, Any]] | None:
        return self._handoff.wait_for_task(self._answered, timeout_s)

    def is_open(self, task: Task) -> bool:
        return self._handoff.is_waiting(task)

    def answer(self, task: Task, answer: Answer) -> None:
        self._handoff.reply(task, answer)
        self._answered = task.id

    def stop(self, reason: str) -> None:
        self._handoff.stop(reason)

    def close(self) -> None:
        self._lock.close()


def client_app(handoff: str = "", restart_s: float = DEFAULT_RESTART_S) -> Any:
    """Return a Flower ClientApp that hands every message to the trainer with which it shares a folder.

    `handoff` is that folder; by default the SuperNode's --node-config names it, under `medfed-folder`.
    `restart_s` is how long a message waits for a trainer that does not run (yet). What goes wrong here is
    told to the network in words of medfed's only: Flower would send an exception's text, which can hold a
    path.
    """
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]  # flwr is not installed where types are checked
    def train(message: Message, context: Context) -> Message:
        return _bridged("train", message, context)

    @app.evaluate()  # type: ignore[untyped-decorator]
    def evaluate(message: Message, context: Context) -> Message:
        return _bridged("evaluate", message, context)

    def _bridged(kind: Literal["train", "evaluate"], message: Message, context: Context) -> Message:
        try:
            folder = handoff or str(context.node_config[FOLDER_KEY])
            task = new_task(str(context.run_id), kind, _round(message))
            answer = Handoff(Path(folder)).ask(task, _arrays(message), restart_s)
        except Exception as error:
            log.exception("the message could not be handed to the trainer")
            answer = Answer(error=f"this site's bridge failed ({type(error).__name__}); its own log says why")
        return _reply(message, answer)

    return app


def _round(message: Any) -> int:
    """Return the round of a message, as every strategy of Flower's states it."""
    (config,) = message.content.config_records.values()
    round = config["server-round"]
    if not isinstance(round, int) or not 1 <= round <= MAX_ROUND:
        raise WireError("the network's message has no valid server-round")
    return round


def _arrays(message: Any) -> dict[str, Any]:
    (records,) = message.content.array_records.values()
    return {name: array.numpy() for name, array in records.items()}


def _reply(message: Any, answer: Answer) -> Any:
    """Return Flower's reply: one record of arrays (of a training) and one of numbers, or an error."""
    from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

    if answer.error:
        return Message(Error(code=CLIENT_ERROR, reason=answer.error), reply_to=message)
    content = RecordDict({"metrics": MetricRecord(dict(answer.numbers))})
    if answer.arrays:
        content["arrays"] = ArrayRecord({name: Array(value) for name, value in answer.arrays.items()})
    return Message(content, reply_to=message)
