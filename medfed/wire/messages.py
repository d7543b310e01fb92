"""Small sealed messages between sites and hub, besides models and updates: keys, shares, signed lists.

A mechanism whose sites must agree on something (`privacy/secure_sum.py`) uses messages. They are addressed by
study, run, round, attempt, step and party and sealed by the sender, so the hub can forward a site's message
unchanged and the other sites can verify who wrote it. The first message of a step counts. Nothing learned
from patients is ever sent in a message; that leaves as an `Update`, in `round.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import msgspec

from medfed.errors import DECODING_ERRORS, ForgedError, MedfedError, PrivacyError, WireError
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import BROKER, HUB, Seal
from medfed.wire.update import GlobalModel, model_digest

# The version of the message format; parties refuse any other.
FORMAT = "medfed-message-2"

# Enough for keys and shares of some hundred sites with their certificates. A larger message is an
# attack or damaged.
MAX_MESSAGE_BYTES = 4 << 20


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="letter"):
    """One party's message for one step of one attempt at one round; `to` is a site or the hub."""

    format: str
    study: str
    run: str
    party: str
    to: str
    round: int
    attempt: int
    step: str
    data: bytes

    @property
    def when(self) -> tuple[int, int]:
        """Round and attempt: a step's latest message counts, and of one attempt's the first."""
        return self.round, self.attempt


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a site says in a message: its content, and the SHA-256 of the model from which it trains."""

    model: str
    content: bytes


@dataclass(frozen=True)
class ReceivedMessage:
    """A site's message as the hub received it (opened, and still sealed), or the error instead."""

    site: str
    message: Message | None = None
    sealed: bytes = b""
    error: MedfedError | None = None


def seal_message(message: Message, seal: Seal) -> bytes:
    """Return a message as sealed bytes.

    Raises:
        WireError: if it is larger than any party would read.
    """
    data = seal.seal(msgspec.json.encode(message))
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    return data


def open_message(data: bytes, seal: Seal, party: str, study_digest: str, run: str = "") -> Message:
    """Return the message that a party sealed for this study, and for this run of it if one is given.

    Raises:
        WireError: if it is too large, not that party's, of another study or run, or no message.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ForgedError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    text = seal.open(data, party)
    try:
        message = msgspec.json.decode(text, type=Message)
    except DECODING_ERRORS as error:
        raise WireError(f"a message of '{party}' cannot be decoded: {str(error)[:200]}") from None
    if message.format != FORMAT:
        raise WireError(
            f"a message of '{party}' has format '{message.format[:30]}', this medfed reads '{FORMAT}'; "
            f"update the older side"
        )
    if message.party != party:
        raise WireError(f"a message sealed by '{party}' claims to be from '{message.party[:80]}'")
    if message.study != study_digest or (run and message.run != run):
        raise WireError(
            f"a message of '{party}' belongs to study {message.study[:12] or '(none)'}, run "
            f"{message.run[:8] or '(none)'}; expected {study_digest[:12] or '(none)'}, run "
            f"{run[:8] or '(any)'}: it is a copy of another one"
        )
    return message


def unverified_data(sealed: bytes) -> bytes:
    """Return the content of a site's sealed message that the caller verified earlier."""
    message = msgspec.json.decode(sealed.partition(b"\n")[2], type=Message)
    return _statement(message).content


def _statement(message: Message) -> Statement:
    try:
        return msgspec.json.decode(message.data, type=Statement)
    except DECODING_ERRORS as error:
        raise WireError(
            f"the message of '{message.party}' for step '{message.step[:20]}' cannot be decoded: "
            f"{str(error)[:200]}"
        ) from None


def _content(message: Message) -> Message:
    """Return a site's message with its content only."""
    return msgspec.structs.replace(message, data=_statement(message).content)


class SiteMessaging(Protocol):
    """The messages of a site's side of an exchange; part of `SiteSide`."""

    @property
    def signed(self) -> bool:
        """Whether messages are signed, so that nobody in between can write in another party's name."""
        ...

    @property
    def parties(self) -> tuple[str, ...]:
        """The sites that train, where all are in this process; empty across machines: there a study says."""
        ...

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        """Send a message to the hub, durably; the first one for a step, round and attempt counts."""
        ...

    def sent_message(self, site: str, step: str) -> Message | None:
        """Return the last message for a step that this site has sent, in this process or an earlier one."""
        ...

    def receive_message(self, site: str, round: int, min_attempts: Mapping[str, int]) -> Message | None:
        """Return the hub's message for one of these steps, each with its lowest valid attempt, waiting.

        None means that the round is over: the hub has already merged.

        Raises:
            ExchangeError: if the exchange is closed or can no longer be reached.
        """
        ...

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        """Return another site's message that the hub has forwarded.

        Raises:
            WireError: if it is from another party, study or run.
        """
        ...

    def retract(self, site: str, round: int) -> None:
        """Retract this site's update for a round, if there is one, so that another can replace it."""
        ...

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        """Store a secret in this site's own folder, where it survives a restart; it is never sent."""
        ...

    def load_secret(self, site: str, name: str) -> bytes | None:
        """Return a secret that this site has stored, or None."""
        ...


class HubMessaging(Protocol):
    """The messages of the hub's side of an exchange; part of `HubSide`."""

    def send_messages(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        """Send messages to sites, durably, and return the valid ones: the first for a step and attempt."""
        ...

    def sent_messages(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        """Return round and attempt of the last messages for a step, by any process, and the messages."""
        ...

    def collect_messages(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        """Yield one result per site as they arrive, until all have written or the deadline has passed.

        A site that dropped out, or whose message is refused, yields a result with the error.
        """
        ...


@dataclass(frozen=True)
class SiteChannel:
    """A site's messages of one round; each one sent or received is written to the audit log.

    `model` is the one from which the site trains: every message states its digest, so that a hub which sends
    other models to others is found out (Pasquini, Francati, Ateniese: Eluding Secure Aggregation in Federated
    Learning via Model Inconsistency, CCS 2022, arXiv:2111.07380). `parties` are the hospitals that train in
    the study to which this site agreed; nobody else's message is opened, whoever forwards it. `min_sites` is
    the smallest number of them with which this site agrees on keys.
    """

    exchange: SiteMessaging
    site: str
    round: int
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    model: GlobalModel | None = None
    parties: tuple[str, ...] = ()
    min_sites: int = 1

    @property
    def signed(self) -> bool:
        """Whether messages are signed."""
        return self.exchange.signed

    @property
    def who(self) -> str:
        """How errors name this site and round."""
        return f"site '{self.site}', round {self.round}"

    @cached_property
    def model_sha256(self) -> str:
        """The digest of the model from which this site trains; empty if there is none."""
        return "" if self.model is None else model_digest(self.model)

    def send(self, attempt: int, step: str, data: bytes) -> None:
        """Send a message to the hub."""
        self.audit.write(
            "message sent",
            site=self.site,
            to="hub",
            round=self.round,
            attempt=attempt,
            step=step,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        statement = msgspec.json.encode(Statement(self.model_sha256, data))
        self.exchange.send_message(self.site, self.round, attempt, step, statement)

    def sent(self, step: str) -> Message | None:
        """Return the last message for a step that this site has sent, if it is of this round."""
        message = self.exchange.sent_message(self.site, step)
        return _content(message) if message is not None and message.round == self.round else None

    def receive(self, min_attempts: Mapping[str, int]) -> Message | None:
        """Return the hub's message for one of these steps, waiting for it, or None if the round is over."""
        message = self.exchange.receive_message(self.site, self.round, min_attempts)
        if message is not None:
            self.audit.write(
                "message received",
                site=self.site,
                round=self.round,
                attempt=message.attempt,
                step=message.step,
                bytes=len(message.data),
            )
        return message

    def open(self, sealed: bytes, party: str) -> Message:
        """Return another site's message that the hub has forwarded.

        Raises:
            WireError: if that party did not seal it, for this study and run.
            PrivacyError: if it is no hospital of the study, or trains from another model than this site.
        """
        if party not in self.parties or party in (HUB, BROKER):
            raise PrivacyError(
                f"{self.who}: the hub shows '{party[:80]}' as a party, expected hospitals that train in the "
                f"study to which this site agreed ({', '.join(self.parties) or 'none are known here'}); "
                "nothing more is sent"
            )
        message = self.exchange.open_message(self.site, sealed, party)
        statement = _statement(message)
        if statement.model != self.model_sha256:
            raise PrivacyError(
                f"{self.who}: site '{party}' trains from model {statement.model[:12] or '(none)'}, this site "
                f"from {self.model_sha256[:12] or '(none)'}: the hub sent them different ones, or one of "
                "them is not of this round; nothing more is sent"
            )
        return msgspec.structs.replace(message, data=statement.content)

    @contextmanager
    def logged_refusals(self) -> Iterator[None]:
        """Write to the audit log why this site stops answering the hub."""
        try:
            yield
        except MedfedError as error:
            if isinstance(error, PrivacyError | WireError):
                self.audit.write("hub refused", site=self.site, round=self.round, reason=str(error))
            raise

    def retract(self) -> None:
        """Retract this site's update for the round."""
        self.exchange.retract(self.site, self.round)

    def store_secret(self, name: str, secret: bytes) -> None:
        """Store a secret of this site for this run of the study."""
        self.exchange.store_secret(self.site, name, secret)

    def load_secret(self, name: str) -> bytes | None:
        """Return a secret that this site has stored in this run of the study, or None."""
        return self.exchange.load_secret(self.site, name)


@dataclass(frozen=True)
class HubChannel:
    """The hub's messages of one round, the sites that were asked to train for it, and from which model."""

    exchange: HubMessaging
    sites: tuple[str, ...]
    round: int
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    model: GlobalModel | None = None

    @cached_property
    def model_sha256(self) -> str:
        """The digest of the model from which the sites train; empty if there is none."""
        return "" if self.model is None else model_digest(self.model)

    def send(self, attempt: int, step: str, messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Send messages to sites, and return the valid ones: these, or those sent before."""
        return self.exchange.send_messages(self.round, attempt, step, messages)

    def sent(self, step: str) -> tuple[int, Mapping[str, bytes]] | None:
        """Return the attempt and the messages for a step that the hub sent last in this round."""
        sent = self.exchange.sent_messages(step)
        if sent is None:
            return None
        (round, attempt), messages = sent
        return (attempt, messages) if round == self.round else None

    def collect(
        self, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        """Yield one result per site as they arrive; refusals are written to the audit log."""
        for sealed in self.exchange.collect_messages(self.round, attempt, step, sites, deadline_s):
            received = self._opened(sealed)
            if received.error is not None:
                self.log_refusal(received.site, step, received.error)
            yield received

    def _opened(self, received: ReceivedMessage) -> ReceivedMessage:
        """Return the message with its content, refused if its site trains from another model.

        The hub looks too, so that one site which is out of step does not make all others refuse.
        """
        if received.message is None:
            return received
        try:
            statement = _statement(received.message)
            if statement.model != self.model_sha256:
                raise WireError(
                    f"site '{received.site}', round {self.round}: it trains from model "
                    f"{statement.model[:12] or '(none)'}, expected {self.model_sha256[:12] or '(none)'}"
                )
        except WireError as error:
            return ReceivedMessage(received.site, error=error)
        return replace(received, message=_content(received.message))

    def log_refusal(self, site: str, step: str, error: MedfedError) -> None:
        """Log that a site's message is refused, and why."""
        self.audit.write("message refused", site=site, round=self.round, step=step, reason=str(error))
