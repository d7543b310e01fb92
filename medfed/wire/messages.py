"""Small sealed messages between a site and the hub beside the model and the updates:
keys, shares, signed lists.

A mechanism whose sites must settle something among themselves (`privacy/secure_sum.py`) does it by messages.
They are addressed by study, run, round, attempt, step and party and sealed by whoever writes, so the hub can
hand a site's message on to the others as it came and they see that it is that site's. The first message of a
step counts. What is learned from patients never goes in a message; it goes as an `Update`, in `round.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from medfed.errors import MedfedError, WireError
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import Seal

# The version of a letter's form; parties refuse any other.
FORMAT = "medfed-letter-1"

# Keys and shares of some hundred sites with their certificates. A larger message is an attack or damage.
MAX_MESSAGE_BYTES = 4 << 20


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="letter"):
    """What one party says in one step of one attempt at one round. `to` is a site, or the hub."""

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
        """Round and attempt: of two messages of a step the later one counts, of two of one time the first."""
        return self.round, self.attempt


@dataclass(frozen=True)
class ReceivedMessage:
    """A site's message as the hub got it: opened, and sealed as it came; or the error that
    stands in its place.
    """

    site: str
    message: Message | None = None
    sealed: bytes = b""
    error: MedfedError | None = None


def seal_message(message: Message, seal: Seal) -> bytes:
    """Return a message as it travels.

    Raises:
        WireError: if it is larger than any party would read.
    """
    data = seal.seal(msgspec.json.encode(message))
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    return data


def open_message(data: bytes, seal: Seal, party: str, study: str, run: str = "") -> Message:
    """Return the message that a party sealed for this study, and for this run of it if one is given.

    Raises:
        WireError: if it is too large, not that party's, of another study or run, or no message.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    text = seal.open(data, party)
    try:
        message = msgspec.json.decode(text, type=Message)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"a message of '{party}' cannot be decoded: {str(error)[:200]}") from None
    if message.format != FORMAT:
        raise WireError(
            f"a message of '{party}' is a '{message.format[:30]}', this medfed reads '{FORMAT}'; update the older side"
        )
    if message.party != party:
        raise WireError(f"a message that '{party}' sealed says it is of '{message.party[:80]}'")
    if message.study != study or (run and message.run != run):
        raise WireError(
            f"a message of '{party}' belongs to study {message.study[:12] or '(none)'}, run {message.run[:8] or '(none)'}; "
            f"expected {study[:12] or '(none)'}, run {run[:8] or '(any)'}: it is a copy of another one"
        )
    return message


class SiteMessaging(Protocol):
    """What an exchange does with messages at a site; part of `SiteSide`."""

    @property
    def signed(self) -> bool:
        """Whether messages carry signatures, so that nobody in between can write in another's name."""
        ...

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        """Leave a message for the hub, durably; of a step, round and attempt the first one counts."""
        ...

    def sent_message(self, site: str, step: str) -> Message | None:
        """Return the last message of a step that this site has left, by this process or one before."""
        ...

    def receive_message(self, site: str, round: int, sought: Mapping[str, int]) -> Message | None:
        """Return the hub's message to this site of one of these steps, each with its lowest
        attempt, waiting for one.

        None says that the round is over: the hub has merged without whatever this would have led to.

        Raises:
            ExchangeError: if the exchange is closed or cannot be reached any more.
        """
        ...

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        """Return another site's message that the hub handed on.

        Raises:
            WireError: if it is not that party's, or of another study or run.
        """
        ...

    def retract(self, site: str, round: int) -> None:
        """Take back this site's update for a round, if there is one, so that another can be
        sent in its place.
        """
        ...

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        """Put a secret into this site's own folder, where it survives a restart; it is sent to nobody."""
        ...

    def load_secret(self, site: str, name: str) -> bytes | None:
        """Return a secret that this site kept, or None."""
        ...


class HubMessaging(Protocol):
    """What an exchange does with messages at the hub; part of `HubSide`."""

    def send_messages(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        """Leave messages for sites, durably, and return what stands: of a step, round and
        attempt the first ones.
        """
        ...

    def sent_messages(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        """Return when (round, attempt) the hub last left messages of a step, by any
        process, and those messages.
        """
        ...

    def collect_messages(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        """Yield one delivery a site as they come, until all have written or the deadline has passed.

        A site that withdrew, or whose message is refused, yields a delivery with the error.
        """
        ...


@dataclass(frozen=True)
class SiteChannel:
    """A site's messages of one round; each one that leaves or comes is written to the audit log."""

    exchange: SiteMessaging
    site: str
    round: int
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))

    @property
    def signed(self) -> bool:
        """Whether messages carry signatures."""
        return self.exchange.signed

    def send(self, attempt: int, step: str, data: bytes) -> None:
        """Leave a message for the hub."""
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
        self.exchange.send_message(self.site, self.round, attempt, step, data)

    def sent(self, step: str) -> Message | None:
        """Return this site's last message of a step if it is of this round."""
        found = self.exchange.sent_message(self.site, step)
        return found if found is not None and found.round == self.round else None

    def receive(self, sought: Mapping[str, int]) -> Message | None:
        """Return the hub's message of one of these steps, or None if the round is over."""
        found = self.exchange.receive_message(self.site, self.round, sought)
        if found is not None:
            self.audit.write(
                "message received",
                site=self.site,
                round=self.round,
                attempt=found.attempt,
                step=found.step,
                bytes=len(found.data),
            )
        return found

    def open(self, sealed: bytes, party: str) -> Message:
        """Return another site's message that the hub handed on."""
        return self.exchange.open_message(self.site, sealed, party)

    def retract(self) -> None:
        """Take back this site's update for the round."""
        self.exchange.retract(self.site, self.round)

    def store_secret(self, name: str, secret: bytes) -> None:
        """Keep a secret of this site, for this run of the study."""
        self.exchange.store_secret(self.site, name, secret)

    def load_secret(self, name: str) -> bytes | None:
        """Return a secret that this site kept in this run of the study, or None."""
        return self.exchange.load_secret(self.site, name)


@dataclass(frozen=True)
class HubChannel:
    """The hub's messages of one round, and the sites that were asked to train towards it."""

    exchange: HubMessaging
    sites: tuple[str, ...]
    round: int
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))

    def send(self, attempt: int, step: str, messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Leave messages for sites, and return those that stand."""
        return self.exchange.send_messages(self.round, attempt, step, messages)

    def sent(self, step: str) -> tuple[int, Mapping[str, bytes]] | None:
        """Return the attempt and the messages of a step that the hub last left in this round."""
        found = self.exchange.sent_messages(step)
        return (found[0][1], found[1]) if found is not None and found[0][0] == self.round else None

    def collect(
        self, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        """Yield one delivery a site as they come; what is refused is written to the audit log."""
        for delivery in self.exchange.collect_messages(self.round, attempt, step, sites, deadline_s):
            if delivery.error is not None:
                self.refuse(delivery.site, step, delivery.error)
            yield delivery

    def refuse(self, site: str, step: str, error: MedfedError) -> None:
        """Write down that a site's message is not taken, and why."""
        self.audit.write("message refused", site=site, round=self.round, step=step, reason=str(error))
