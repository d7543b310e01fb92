"""Sites and hub in one process. What passes is bytes, encoded and decoded as across machines, so that what is
simulated is what is deployed."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from medfed.errors import ExchangeError, MedfedError, SiteError, UpdateError
from medfed.exchange._exchange import Exchange, Receipt, ReceivedUpdate
from medfed.exchange._mailbox import write_secret
from medfed.wire import encoding as wire
from medfed.wire.messages import FORMAT, Message, ReceivedMessage, open_message, seal_message
from medfed.wire.signing import HUB, Seal, SessionSeal
from medfed.wire.update import GlobalModel, Update


class Memory(Exchange, tag="memory", frozen=True):
    """All sites in this process: the embedded default, for simulation and for a first look."""

    def open_hub(self, study: str, folder: Path) -> MemoryExchange:
        return MemoryExchange(study)

    def open_site(self, study: str, site: str, folder: Path) -> MemoryExchange:
        raise ExchangeError(
            "exchange.kind: 'memory' joins sites of one process only; across machines use 'nats' or 'folder'"
        )

    def advertised_study(self) -> tuple[str, str]:
        raise ExchangeError(
            "exchange.kind: 'memory' joins sites of one process, which have the study already"
        )


class MemoryExchange:
    """Both sides of the memory exchange; threads share one object.

    `idle` is entered around every wait of a site, so that a simulation can give another site its turn
    meanwhile. `seen` is called with every message's bytes, for a test that searches them. With `late`,
    updates for earlier rounds are kept, and the models that they and the sites' training began from.
    `secrets` is the folder under which each site keeps its own, so that a run resumes; without it they last
    as long as this object.
    """

    def __init__(
        self,
        study: str = "",
        idle: Callable[[], AbstractContextManager[None]] = nullcontext,
        seen: Callable[[bytes], None] = lambda data: None,
        secrets: Path | None = None,
        late: bool = False,
    ) -> None:
        self._late = late
        self._models: dict[int, GlobalModel] = {}
        self._began: dict[str, int] = {}
        self._taken: set[tuple[int, str]] = set()
        self._study = study
        self._idle = idle
        self._seen = seen
        self._changed = threading.Condition()
        self._newest: tuple[int, bytes] | None = None
        self._weights: GlobalModel | None = None
        self._answers: dict[tuple[int, str], tuple[bytes, float]] = {}
        self._withdrawn: dict[str, str] = {}
        self._messages: dict[tuple[str, str, str], tuple[Message, bytes]] = {}
        self._sent_to_all: dict[str, tuple[tuple[int, int], dict[str, bytes]]] = {}
        self._keys: dict[str, Any] = {}
        self._secrets: dict[tuple[str, str], bytes] = {}
        self._folder = secrets
        self._run = uuid.uuid4().hex
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def fetch(self, site: str, round: int) -> GlobalModel:
        with self._idle(), self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._newest is not None and self._newest[0] >= round)
            )
            if self._newest is None or self._newest[0] < round:
                raise ExchangeError(
                    f"site '{site}' waits for round {round}, but the hub has closed the study"
                )
            self._began[site], data = self._newest
        return wire.decode_global(data, self._study)

    def receipt(self, update: Update) -> Receipt:
        return Receipt("hub, in this process", *wire.measured(update, self._study))

    def send(self, update: Update) -> None:
        data = wire.encode_update(update, self._study)
        with self._changed:
            if self._closed:
                raise ExchangeError(
                    f"site '{update.site}' sends for round {update.round}, but the hub has closed"
                )
            self._seen(data)
            if (update.round, update.site) not in self._taken:
                self._answers.setdefault((update.round, update.site), (data, time.monotonic()))
            self._changed.notify_all()

    def withdraw(self, site: str, reason: str) -> None:
        with self._changed:
            self._seen(reason.encode())
            self._withdrawn[site] = reason
            self._changed.notify_all()

    def publish(self, sent: GlobalModel, kept: Callable[[], None] = lambda: None) -> int:
        kept()
        data = wire.encode_global(sent)
        with self._changed:
            self._seen(data)
            self._newest = (sent.round, data)
            self._weights = sent
            if self._late:
                needed = {*self._began.values(), *(round - 1 for round, _ in self._answers)}
                self._models = {r: m for r, m in self._models.items() if r in needed} | {sent.round: sent}
            else:
                # An older round's answers can no longer count: memory stays that of one round.
                self._answers = {key: value for key, value in self._answers.items() if key[0] > sent.round}
            self._changed.notify_all()
        return len(data)

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[ReceivedUpdate]:
        awaited = sorted(sites)
        start = time.monotonic()
        while awaited:
            with self._changed:
                left = None if deadline_s is None else start + deadline_s - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._changed.wait_for(lambda: self._closed or self._answered(round, awaited), timeout=left)
                here = self._answered(round, awaited)
                taken = {site: self._answers.get((round, site)) for site in here}
            if self._closed and not here:
                return
            for site, answer in taken.items():
                awaited.remove(site)
                yield self._arrival(round, site, answer, start, self._weights)

    def collect_async(
        self, round: int, sites: Sequence[str], deadline_s: float | None, enough: int
    ) -> Iterator[ReceivedUpdate]:
        start = time.monotonic()
        heard: set[str] = set()
        came = 0
        while came < enough and not heard.issuperset(sites):
            with self._changed:
                left = None if deadline_s is None else max(0.0, start + deadline_s - time.monotonic())
                self._changed.wait_for(lambda: self._closed or self._next(round, sites, heard), timeout=left)
                key = self._next(round, sites, heard)
                if key is None:  # the hub closes, or the deadline has passed
                    return
                answer = self._answers.pop(key, None)
                if answer is not None:
                    self._taken.add(key)
            heard.add(key[1])
            arrival = self._arrival(*key, answer, start, self._models.get(key[0] - 1))
            came += arrival.update is not None
            yield arrival

    def _next(self, round: int, sites: Sequence[str], heard: set[str]) -> tuple[int, str] | None:
        """Return the round and site of the update that waits longest, or of a site that stopped and
        was not yet heard.
        """
        here = [key for key in self._answers if key[0] <= round and key[1] in sites]
        if here:
            return min(here, key=lambda key: self._answers[key][1])
        stopped = sorted(site for site in sites if site in self._withdrawn and site not in heard)
        return (round, stopped[0]) if stopped else None

    def _answered(self, round: int, sites: Sequence[str]) -> list[str]:
        return [site for site in sites if (round, site) in self._answers or site in self._withdrawn]

    def _arrival(
        self,
        round: int,
        site: str,
        answer: tuple[bytes, float] | None,
        start: float,
        began: GlobalModel | None,
    ) -> ReceivedUpdate:
        if answer is None:
            return ReceivedUpdate(
                site, None, SiteError(f"site '{site}', round {round}: {self._withdrawn[site]}")
            )
        data, when = answer
        try:
            if began is None:
                raise UpdateError(
                    "it was made from a model that the hub no longer holds, as after the hub was started again; the site "
                    "goes on from the newest one"
                )
            update = wire.decode_update(data, began.weights, self._study)
        except MedfedError as error:
            return ReceivedUpdate(
                site, None, type(error)(f"site '{site}', round {round}: {error}"), len(data)
            )
        return ReceivedUpdate(site, update, None, len(data), when - start)

    # -- messages

    signed = True

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        with self._changed:
            self._put(Message(FORMAT, self._study, self._run, site, HUB, round, attempt, step, data))

    def sent_message(self, site: str, step: str) -> Message | None:
        with self._changed:
            found = self._messages.get((site, HUB, step))
            return found[0] if found else None

    def receive_message(self, site: str, round: int, sought: Mapping[str, int]) -> Message | None:
        with self._idle(), self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._over(round) or self._sought(site, round, sought) is not None
            )
            if self._over(round):
                return None
            found = self._sought(site, round, sought)
            if found is None:
                raise ExchangeError(
                    f"site '{site}' waits for a message of round {round}, but the hub has closed"
                )
        return open_message(found, self._seal(site), HUB, self._study, self._run)

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        return open_message(sealed, self._seal(site), party, self._study, self._run)

    def retract(self, site: str, round: int) -> None:
        with self._changed:
            self._answers.pop((round, site), None)

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        self._secrets[site, name] = secret
        if self._folder is not None:
            write_secret(self._folder / site / f"{name}.secret", secret)

    def load_secret(self, site: str, name: str) -> bytes | None:
        path = None if self._folder is None else self._folder / site / f"{name}.secret"
        if (site, name) not in self._secrets and path is not None and path.exists():
            self._secrets[site, name] = path.read_bytes()
        return self._secrets.get((site, name))

    def send_messages(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        with self._changed:
            before = self._sent_to_all.get(step)
            if before is not None and before[0] >= (round, attempt):
                return before[1]
            self._sent_to_all[step] = ((round, attempt), dict(messages))
            for site, data in messages.items():
                self._put(Message(FORMAT, self._study, self._run, HUB, site, round, attempt, step, data))
            return messages

    def sent_messages(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        with self._changed:
            return self._sent_to_all.get(step)

    def collect_messages(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        awaited, start = sorted(sites), time.monotonic()

        def answered() -> list[str]:
            return [
                site for site in awaited if site in self._withdrawn or self._is(site, round, attempt, step)
            ]

        while awaited:
            with self._changed:
                left = None if deadline_s is None else max(0.0, start + deadline_s - time.monotonic())
                self._changed.wait_for(lambda: self._closed or bool(answered()), timeout=left)
                found = {site: self._messages.get((site, HUB, step), (None, b""))[1] for site in answered()}
            if not found:
                return
            for site, sealed in found.items():
                awaited.remove(site)
                yield self._delivery(site, round, attempt, step, sealed)

    def _put(self, message: Message) -> None:
        if self._closed:
            raise ExchangeError(f"'{message.party}' writes for round {message.round}, but the hub has closed")
        key = (message.party, message.to, message.step)
        if key in self._messages and self._messages[key][0].when >= message.when:
            return
        sealed = seal_message(message, self._seal(message.party))
        self._seen(sealed)
        self._messages[key] = (message, sealed)
        self._changed.notify_all()

    def _seal(self, party: str) -> Seal:
        return SessionSeal(party, self._keys)

    def _over(self, round: int) -> bool:
        return self._newest is not None and self._newest[0] >= round

    def _sought(self, site: str, round: int, sought: Mapping[str, int]) -> bytes | None:
        for step, attempt in sought.items():
            message, sealed = self._messages.get((HUB, site, step), (None, b""))
            if message is not None and message.round == round and message.attempt >= attempt:
                return sealed
        return None

    def _is(self, site: str, round: int, attempt: int, step: str) -> bool:
        message, _ = self._messages.get((site, HUB, step), (None, b""))
        return message is not None and message.when == (round, attempt)

    def _delivery(self, site: str, round: int, attempt: int, step: str, sealed: bytes) -> ReceivedMessage:
        if not self._is(site, round, attempt, step):
            return ReceivedMessage(
                site, error=SiteError(f"site '{site}', round {round}: {self._withdrawn.get(site, '')}")
            )
        try:
            return ReceivedMessage(
                site, open_message(sealed, self._seal(HUB), site, self._study, self._run), sealed
            )
        except MedfedError as error:
            return ReceivedMessage(site, error=type(error)(f"site '{site}', round {round}: {error}"))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
