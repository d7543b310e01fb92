"""Sites and hub in one process.

Everything is encoded and decoded as across machines, so that what is simulated is what is deployed.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from medfed.errors import ExchangeError, MedfedError, SiteError, StudyError, UpdateError
from medfed.exchange._drop_out import DropOut
from medfed.exchange._exchange import NOTHING_MERGED, ReceivedUpdate, Transmission, early_update
from medfed.exchange._idle_threads import end_idle_threads
from medfed.exchange._mailbox import SECRET_MODE
from medfed.exchange._record import Exchange, Offer
from medfed.exchange._update_store import DEFAULT_MEMORY_BYTES, StoredModel, StoredUpdate, UpdateStore
from medfed.files import write_whole
from medfed.wire import encoding
from medfed.wire.messages import FORMAT, Message, ReceivedMessage, open_message, seal_message
from medfed.wire.signing import HUB, Seal, SessionSeal
from medfed.wire.update import GlobalModel, Update, model_digest


class Memory(Exchange, tag="memory", frozen=True):
    """All sites in this process: the embedded default, for simulation and for a first look."""

    def open_hub(self, study_digest: str, folder: Path) -> MemoryExchange:
        return MemoryExchange(study_digest)

    def open_site(self, study_digest: str, site: str, folder: Path) -> MemoryExchange:
        raise ExchangeError(
            "exchange.kind: 'memory' connects sites of one process only; across machines use 'nats' or "
            "'folder'"
        )

    def offered_studies(
        self,
        site: str,
        *,
        known: Collection[str] = (),
        max_wait_s: float | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> list[Offer]:
        raise ExchangeError(
            "exchange.kind: 'memory' connects sites of one process, which have the study already"
        )


class MemoryExchange:
    """Both sides of the memory exchange; threads share one object.

    `idle` is entered around every wait of a site, so that a simulation can run another site meanwhile.
    `on_bytes` is called with every message's bytes, for a test that searches them. If `asynchronous`,
    updates for earlier rounds are kept, and the models from which they and the sites' training started.
    `caller` returns the site whose function runs in the calling thread, '' if it is none's.
    `secrets` is the folder below which each site stores its own, so that a run resumes; without it they last
    as long as this object. `parties` are the sites that train. Of a round's encoded updates, `memory_bytes`
    are held in memory, the rest in a file. With `only_selected` a site is given no model that others train.
    """

    signed = True
    in_one_process = True

    def __init__(
        self,
        study_digest: str = "",
        idle: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_bytes: Callable[[bytes], None] | None = None,
        secrets: Path | None = None,
        asynchronous: bool = False,
        parties: tuple[str, ...] = (),
        caller: Callable[[], str] = lambda: "",
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        only_selected: bool = False,
    ) -> None:
        self.parties = parties
        # Called once the study is closed.
        self.on_closed: list[Callable[[], None]] = []
        self.only_selected = only_selected
        self._caller = caller
        self._study, self._run = study_digest, uuid.uuid4().hex
        self._idle, self._on_bytes, self._asynchronous = idle, on_bytes, asynchronous
        # One lock. Sites wait for what the hub does and the hub for what sites do: with one condition for
        # both, each of a thousand updates would wake a thousand sites.
        lock = threading.RLock()
        self._changed, self._updates_changed = threading.Condition(lock), threading.Condition(lock)
        self.closed = False
        # The digest of the model that a site found valid last.
        self.valid_model = ""
        # The newest model: its round; encoded until a site asks for it, and then as all sites receive it.
        self._newest: tuple[int, StoredModel | GlobalModel] | None = None
        self._store, self._memory_bytes = UpdateStore(), memory_bytes
        self._versions: dict[str, int] = {}
        self._newest_model: GlobalModel | None = None
        # For asynchronous collection: models by round, the round that each site fetched
        # last, updates collected.
        self._models: dict[int, GlobalModel] = {}
        self._fetched: dict[str, int] = {}
        self._collected: set[tuple[int, str]] = set()
        # Updates by round and site with their time of arrival, and reasons for dropping out by site.
        self._updates: dict[tuple[int, str], tuple[StoredUpdate, float]] = {}
        self._dropped_out: dict[str, str] = {}
        # Round and bytes of updates that were sent before their round began, by site.
        self._early: dict[str, tuple[int, int]] = {}
        # Messages by sender, recipient and step; and the hub's last messages to all sites by step.
        self._messages: dict[tuple[str, str, str], tuple[Message, bytes]] = {}
        self._sent_to_all: dict[str, tuple[tuple[int, int], dict[str, bytes]]] = {}
        self._keys: dict[str, Ed25519PrivateKey] = {}
        self._secrets: dict[tuple[str, str], bytes] = {}
        self._secrets_folder = secrets
        # The site that trains a tensor.
        self._owners = WeakIdKeyDictionary()

    # -- models and updates

    @property
    def newest_model(self) -> GlobalModel | None:
        """The model that the hub published last."""
        return self._newest_model

    @property
    def finished(self) -> bool:
        """Whether the hub has published the study's final model."""
        return self._newest_model is not None and self._newest_model.final

    def fetch(self, site: str, round: int) -> GlobalModel:
        self._require_own_name(site)
        # Without waiting no other site trains meanwhile; after it, while others had their turn, there may be
        # a newer model.
        while not (self.closed or self.is_over(round, site)):
            with self._idle(), self._changed:
                self._changed.wait_for(lambda: self.closed or self.is_over(round, site))
        with self._changed:
            if self._newest is None or not self.is_over(round, site):
                raise ExchangeError(
                    f"site '{site}' waits for round {round}, but the hub has closed the study"
                )
            self._fetched[site], published = self._newest
            if isinstance(published, GlobalModel):
                require_unwritten(published, self._versions)
                return published
            decoded = published.decode(self._study)
            decoded = replace(decoded, sha256=model_digest(decoded))
            self._newest, self._versions = (self._newest[0], decoded), versions_of(decoded)
            return decoded

    def claim(self, site: str, tensor: Tensor) -> str:
        """Note that a site trains a tensor; return the other site that already does, or ''."""
        with self._changed:
            owner = str(self._owners.setdefault(tensor, site))  # type: ignore[no-untyped-call]
        return "" if owner == site else owner

    def wait_for_model(self, round: int = 0, site: str = "") -> None:
        """Wait until the hub has published a model of this round or later, for this site, or has closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self.is_over(round, site))

    def transmission(self, update: Update) -> Transmission:
        return Transmission("hub, in this process", *encoding.measure_update(update, self._study))

    def send(self, update: Update) -> None:
        self._require_own_name(update.site)
        with self._changed:
            if self.closed:
                raise ExchangeError(
                    f"site '{update.site}' sends for round {update.round}, but the hub has closed"
                )
            if self._on_bytes is not None:
                self._on_bytes(encoding.encode_update(update, self._study))
            if self._is_early(update.round):
                self._early[update.site] = update.round, len(encoding.encode_update(update, self._study))
            elif self._is_new(update.round, update.site):
                used = sum(stored.in_memory for stored, _ in self._updates.values())
                stored = self._store.store(update, self._study, self._memory_bytes - used)
                self._updates[update.round, update.site] = stored, time.monotonic()
            self._updates_changed.notify_all()

    def send_stored(self, site: str, round: int, stored: StoredUpdate) -> None:
        """Deliver an update that a site in another process of this machine has encoded."""
        self._require_own_name(site)
        with self._changed:
            if self.closed:
                raise ExchangeError(f"site '{site}' sends for round {round}, but the hub has closed")
            if self._on_bytes is not None:
                self._on_bytes(stored.encoded())
            if self._is_early(round):
                self._early[site] = round, stored.size
            elif self._is_new(round, site):
                self._updates[round, site] = stored, time.monotonic()
            self._updates_changed.notify_all()

    def _is_early(self, round: int) -> bool:
        return round > (-1 if self._newest is None else self._newest[0]) + 1

    def _is_new(self, round: int, site: str) -> bool:
        """Return whether an update still counts; one that was sent twice counts once."""
        return (round, site) not in self._collected and (round, site) not in self._updates

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        reason = DropOut(reason)  # as across machines: other words are refused
        with self._changed:
            if self._on_bytes is not None:
                self._on_bytes(reason.encode())
            self._dropped_out[site] = detail or reason
            self._updates_changed.notify_all()

    def withdraw(self, site: str, reason: str) -> None:
        """Note that nothing more comes from a site; a reason that it gave itself stays, and none is sent."""
        with self._changed:
            self._dropped_out.setdefault(site, reason)
            self._updates_changed.notify_all()

    def _require_own_name(self, site: str) -> None:
        """Refuse a name that the hub does not wait for: it would wait for the right one for ever."""
        caller = self._caller()
        expected = (caller,) if caller else self.parties
        if expected and site not in expected:
            raise StudyError(
                f"site '{site}': this function is that of site '{caller}'; give FederatedCallback('{caller}')"
                if caller
                else f"site '{site}' is none of this study's, which are {', '.join(self.parties)}"
            )

    def publish(self, model: GlobalModel, ensure_saved: Callable[[], None] = lambda: None) -> int:
        ensure_saved()
        stored = StoredModel(encoding.global_pieces(model))
        with self._changed:
            if self._on_bytes is not None:
                self._on_bytes(encoding.encode_global(model))
            self._newest = (model.round, stored)
            self._newest_model = model
            if self._asynchronous:
                needed = {*self._fetched.values(), *(round - 1 for round, _ in self._updates)}
                self._models = {r: m for r, m in self._models.items() if r in needed} | {model.round: model}
            else:
                # An older round's updates no longer count: memory stays that of one round.
                self._updates = {key: value for key, value in self._updates.items() if key[0] > model.round}
            self._changed.notify_all()
        return stored.size

    def newest_published(self, after: int) -> GlobalModel | None:
        newest = self._newest_model
        return newest if newest is not None and newest.round > after else None

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[ReceivedUpdate]:
        pending = sorted(sites)
        start = time.monotonic()

        def answered() -> list[str]:
            return [
                site
                for site in pending
                if (round, site) in self._updates or site in self._dropped_out or site in self._early
            ]

        while pending:
            with self._changed:
                remaining = None if deadline_s is None else start + deadline_s - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return
                end_idle_threads()
                self._updates_changed.wait_for(lambda: self.closed or bool(answered()), timeout=remaining)
                arrived = {site: self._updates.get((round, site)) for site in answered()}
            if self.closed and not arrived:
                return
            for site, update in arrived.items():
                pending.remove(site)
                yield self._received_update(round, site, update, start, self._newest_model)

    def collect_async(
        self,
        round: int,
        sites: Sequence[str],
        deadline_s: float | None,
        count: int,
        merged: Mapping[str, int] = NOTHING_MERGED,  # this object collects an update once
    ) -> Iterator[ReceivedUpdate]:
        start = time.monotonic()
        answered: set[str] = set()
        updates = 0
        while updates < count and not answered.issuperset(sites):
            with self._changed:
                remaining = None if deadline_s is None else max(0.0, start + deadline_s - time.monotonic())
                end_idle_threads()
                self._updates_changed.wait_for(
                    lambda: self.closed or self._oldest(round, sites, answered), timeout=remaining
                )
                key = self._oldest(round, sites, answered)
                if key is None:  # the hub closes, or the deadline has passed
                    return
                update = self._updates.pop(key, None)
                if update is not None:
                    self._collected.add(key)
            answered.add(key[1])
            received = self._received_update(*key, update, start, self._models.get(key[0] - 1))
            updates += received.update is not None
            yield received

    def _oldest(self, round: int, sites: Sequence[str], answered: set[str]) -> tuple[int, str] | None:
        """Return round and site of the oldest update, or else of a site that dropped out and is new."""
        waiting = [key for key in self._updates if key[0] <= round and key[1] in sites]
        if waiting:
            return min(waiting, key=lambda key: self._updates[key][1])
        silent = {*self._dropped_out, *self._early} - answered
        stopped = sorted(site for site in sites if site in silent)
        return (round, stopped[0]) if stopped else None

    def _received_update(
        self,
        round: int,
        site: str,
        update: tuple[StoredUpdate, float] | None,
        start: float,
        trained_from: GlobalModel | None,
    ) -> ReceivedUpdate:
        if update is None:
            early = self._early.pop(site, None)
            if early is not None:
                return early_update(site, round, *early)
            return ReceivedUpdate(site, None, self._drop_out(site, round))
        stored, arrived = update
        try:
            if trained_from is None:
                raise UpdateError(
                    "it was trained from a model that the hub no longer holds, for example after a restart "
                    "of the hub; the site continues from the newest one"
                )
            decoded = stored.decode(trained_from.weights, self._study)
        except MedfedError as error:
            named = type(error)(f"site '{site}', round {round}: {error}")
            return ReceivedUpdate(site, None, named, stored.size)
        return ReceivedUpdate(site, decoded, None, stored.size, arrived - start)

    def _drop_out(self, site: str, round: int) -> SiteError:
        return SiteError(f"site '{site}', round {round}: {self._dropped_out.get(site, '')}")

    def is_over(self, round: int, site: str = "") -> bool:
        """Return whether there is a model of this round or a later one, for this site if one is named."""
        if self._newest is None or self._newest[0] < round:
            return False
        model = self._newest_model
        if not site or not self.only_selected or model is None:
            return True
        return model.ends_training or model.selects(site)

    # -- a site's messages

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        with self._changed:
            self._put(Message(FORMAT, self._study, self._run, site, HUB, round, attempt, step, data))

    def sent_message(self, site: str, step: str) -> Message | None:
        with self._changed:
            stored = self._messages.get((site, HUB, step))
            return stored[0] if stored else None

    def receive_message(self, site: str, round: int, min_attempts: Mapping[str, int]) -> Message | None:
        def find() -> bytes | None:
            for step, min_attempt in min_attempts.items():
                message, sealed = self._messages.get((HUB, site, step), (None, b""))
                if message is not None and message.round == round and message.attempt >= min_attempt:
                    return sealed
            return None

        with self._idle(), self._changed:
            self._changed.wait_for(lambda: self.closed or self.is_over(round) or find() is not None)
            if self.is_over(round):
                return None
            sealed = find()
            if sealed is None:
                raise ExchangeError(
                    f"site '{site}' waits for a message of round {round}, but the hub has closed"
                )
        return self.open_message(site, sealed, HUB)

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        return open_message(sealed, self._seal(site), party, self._study, self._run)

    def retract(self, site: str, round: int) -> None:
        with self._changed:
            self._updates.pop((round, site), None)

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        self._secrets[site, name] = secret
        if self._secrets_folder is not None:
            write_whole(self._secrets_folder / site / f"{name}.secret", secret, mode=SECRET_MODE)

    def load_secret(self, site: str, name: str) -> bytes | None:
        path = None if self._secrets_folder is None else self._secrets_folder / site / f"{name}.secret"
        if (site, name) not in self._secrets and path is not None and path.exists():
            self._secrets[site, name] = path.read_bytes()
        return self._secrets.get((site, name))

    # -- the hub's messages

    def send_messages(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        with self._changed:
            previous = self._sent_to_all.get(step)
            if previous is not None and previous[0] >= (round, attempt):
                return previous[1]
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
        pending, start = sorted(sites), time.monotonic()

        def message_of(site: str) -> bytes | None:
            message, sealed = self._messages.get((site, HUB, step), (None, b""))
            return sealed if message is not None and message.when == (round, attempt) else None

        def answered() -> list[str]:
            return [site for site in pending if site in self._dropped_out or message_of(site) is not None]

        while pending:
            with self._changed:
                remaining = None if deadline_s is None else max(0.0, start + deadline_s - time.monotonic())
                self._updates_changed.wait_for(lambda: self.closed or bool(answered()), timeout=remaining)
                arrived = {site: message_of(site) for site in answered()}
            if not arrived:
                return
            for site, sealed in arrived.items():
                pending.remove(site)
                yield self._received_message(site, round, sealed)

    def _put(self, message: Message) -> None:
        if self.closed:
            raise ExchangeError(f"'{message.party}' writes for round {message.round}, but the hub has closed")
        key = (message.party, message.to, message.step)
        if key in self._messages and self._messages[key][0].when >= message.when:
            return
        sealed = seal_message(message, self._seal(message.party))
        if self._on_bytes is not None:
            self._on_bytes(sealed)
        self._messages[key] = (message, sealed)
        (self._updates_changed if message.to == HUB else self._changed).notify_all()

    def _seal(self, party: str) -> Seal:
        return SessionSeal(party, self._keys)

    def _received_message(self, site: str, round: int, sealed: bytes | None) -> ReceivedMessage:
        if sealed is None:
            return ReceivedMessage(site, error=self._drop_out(site, round))
        try:
            return ReceivedMessage(site, self.open_message(HUB, sealed, site), sealed)
        except MedfedError as error:
            return ReceivedMessage(site, error=type(error)(f"site '{site}', round {round}: {error}"))

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            self._updates_changed.notify_all()
        for told in self.on_closed:
            told()


def require_unwritten(shared: GlobalModel, before: Mapping[str, int]) -> None:
    """Refuse to go on once a site has written to the tensors from which the other sites start, too.

    Raises:
        ExchangeError: if a tensor is not as `versions_of` saw it before.
    """
    versions = versions_of(shared)
    written = sorted(name for name in versions if versions[name] != before[name])
    if written:
        raise ExchangeError(
            f"round {shared.round}: '{written[0]}' of the hub's model was changed in place by a site's "
            "code; all sites of this process share what they receive: copy a tensor before writing to it"
        )


def versions_of(model: GlobalModel) -> dict[str, int]:
    """Return how often torch has written to each tensor of a model."""
    groups = {
        f"{group}/{name}": tensor for group, own in model.groups.items() for name, tensor in own.items()
    }
    tensors = {**model.weights, **groups}
    # Tensors made in inference mode, which torch does not count, cannot be written to outside of it.
    return {name: 0 if tensor.is_inference() else tensor._version for name, tensor in tensors.items()}
