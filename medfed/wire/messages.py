"""Small sealed letters between a site and the hub beside the model and the updates:
keys, shares, signed lists.

A mechanism whose sites must settle something among themselves (`privacy/secure_sum.py`) does it by letters.
They are addressed by study, run, round, attempt, step and party and sealed by whoever writes, so the hub can
hand a site's letter on to the others as it came and they see that it is that site's. The first letter of a
step counts. What is learned from patients never goes in a letter; it goes as an `Update`, in `round.py`.
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

# Keys and shares of some hundred sites with their certificates. A larger letter is an attack or damage.
LARGEST_LETTER_BYTES = 4 << 20


class Letter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="letter"):
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
        """Round and attempt: of two letters of a step the later one counts, of two of one time the first."""
        return self.round, self.attempt


@dataclass(frozen=True)
class Delivery:
    """A site's letter as the hub got it: opened, and sealed as it came; or the error that
    stands in its place.
    """

    site: str
    letter: Letter | None = None
    sealed: bytes = b""
    error: MedfedError | None = None


def sealed_letter(letter: Letter, seal: Seal) -> bytes:
    """Return a letter as it travels.

    Raises:
        WireError: if it is larger than any party would read.
    """
    data = seal.seal(msgspec.json.encode(letter))
    if len(data) > LARGEST_LETTER_BYTES:
        raise WireError(f"a letter of {len(data)} bytes; at most {LARGEST_LETTER_BYTES} are read")
    return data


def opened_letter(data: bytes, seal: Seal, party: str, study: str, run: str = "") -> Letter:
    """Return the letter that a party sealed for this study, and for this run of it if one is given.

    Raises:
        WireError: if it is too large, not that party's, of another study or run, or no letter.
    """
    if len(data) > LARGEST_LETTER_BYTES:
        raise WireError(f"a letter of {len(data)} bytes; at most {LARGEST_LETTER_BYTES} are read")
    text = seal.open(data, party)
    try:
        letter = msgspec.json.decode(text, type=Letter)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"a letter of '{party}' does not read: {str(error)[:200]}") from None
    if letter.format != FORMAT:
        raise WireError(
            f"a letter of '{party}' is a '{letter.format[:30]}', this medfed reads '{FORMAT}'; update the older side"
        )
    if letter.party != party:
        raise WireError(f"a letter that '{party}' sealed says it is of '{letter.party[:80]}'")
    if letter.study != study or (run and letter.run != run):
        raise WireError(
            f"a letter of '{party}' belongs to study {letter.study[:12] or '(none)'}, run {letter.run[:8] or '(none)'}; "
            f"expected {study[:12] or '(none)'}, run {run[:8] or '(any)'}: it is a copy of another one"
        )
    return letter


class SitePost(Protocol):
    """What an exchange does with letters at a site; part of `SiteSide`."""

    @property
    def signed(self) -> bool:
        """Whether letters carry signatures, so that nobody in between can write in another's name."""
        ...

    def post(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        """Leave a letter for the hub, durably; of a step, round and attempt the first one counts."""
        ...

    def posted(self, site: str, step: str) -> Letter | None:
        """Return the last letter of a step that this site has left, by this process or one before."""
        ...

    def read(self, site: str, round: int, sought: Mapping[str, int]) -> Letter | None:
        """Return the hub's letter to this site of one of these steps, each with its lowest
        attempt, waiting for one.

        None says that the round is over: the hub has merged without whatever this would have led to.

        Raises:
            ExchangeError: if the exchange is closed or cannot be reached any more.
        """
        ...

    def open_letter(self, site: str, sealed: bytes, party: str) -> Letter:
        """Return another site's letter that the hub handed on.

        Raises:
            WireError: if it is not that party's, or of another study or run.
        """
        ...

    def recall(self, site: str, round: int) -> None:
        """Take back this site's update for a round, if there is one, so that another can be
        sent in its place.
        """
        ...

    def keep(self, site: str, name: str, secret: bytes) -> None:
        """Put a secret into this site's own folder, where it survives a restart; it is sent to nobody."""
        ...

    def kept(self, site: str, name: str) -> bytes | None:
        """Return a secret that this site kept, or None."""
        ...


class HubPost(Protocol):
    """What an exchange does with letters at the hub; part of `HubSide`."""

    def post_all(
        self, round: int, attempt: int, step: str, letters: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        """Leave letters for sites, durably, and return what stands: of a step, round and
        attempt the first ones.
        """
        ...

    def posted_all(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        """Return when (round, attempt) the hub last left letters of a step, by any
        process, and those letters.
        """
        ...

    def gather(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[Delivery]:
        """Yield one delivery a site as they come, until all have written or the deadline has passed.

        A site that withdrew, or whose letter is refused, yields a delivery with the error.
        """
        ...


@dataclass(frozen=True)
class SiteLetters:
    """A site's letters of one round; each one that leaves or comes is written to the audit log."""

    exchange: SitePost
    site: str
    round: int
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))

    @property
    def signed(self) -> bool:
        """Whether letters carry signatures."""
        return self.exchange.signed

    def post(self, attempt: int, step: str, data: bytes) -> None:
        """Leave a letter for the hub."""
        self.audit.write(
            "letter sent",
            site=self.site,
            to="hub",
            round=self.round,
            attempt=attempt,
            step=step,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        self.exchange.post(self.site, self.round, attempt, step, data)

    def posted(self, step: str) -> Letter | None:
        """Return this site's last letter of a step if it is of this round."""
        found = self.exchange.posted(self.site, step)
        return found if found is not None and found.round == self.round else None

    def read(self, sought: Mapping[str, int]) -> Letter | None:
        """Return the hub's letter of one of these steps, or None if the round is over."""
        found = self.exchange.read(self.site, self.round, sought)
        if found is not None:
            self.audit.write(
                "letter received",
                site=self.site,
                round=self.round,
                attempt=found.attempt,
                step=found.step,
                bytes=len(found.data),
            )
        return found

    def open(self, sealed: bytes, party: str) -> Letter:
        """Return another site's letter that the hub handed on."""
        return self.exchange.open_letter(self.site, sealed, party)

    def recall(self) -> None:
        """Take back this site's update for the round."""
        self.exchange.recall(self.site, self.round)

    def keep(self, name: str, secret: bytes) -> None:
        """Keep a secret of this site, for this run of the study."""
        self.exchange.keep(self.site, name, secret)

    def kept(self, name: str) -> bytes | None:
        """Return a secret that this site kept in this run of the study, or None."""
        return self.exchange.kept(self.site, name)


@dataclass(frozen=True)
class HubLetters:
    """The hub's letters of one round, and the sites that were asked to train towards it."""

    exchange: HubPost
    sites: tuple[str, ...]
    round: int
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))

    def post(self, attempt: int, step: str, letters: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Leave letters for sites, and return those that stand."""
        return self.exchange.post_all(self.round, attempt, step, letters)

    def posted(self, step: str) -> tuple[int, Mapping[str, bytes]] | None:
        """Return the attempt and the letters of a step that the hub last left in this round."""
        found = self.exchange.posted_all(step)
        return (found[0][1], found[1]) if found is not None and found[0][0] == self.round else None

    def gather(
        self, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[Delivery]:
        """Yield one delivery a site as they come; what is refused is written to the audit log."""
        for delivery in self.exchange.gather(self.round, attempt, step, sites, deadline_s):
            if delivery.error is not None:
                self.refuse(delivery.site, step, delivery.error)
            yield delivery

    def refuse(self, site: str, step: str, error: MedfedError) -> None:
        """Write down that a site's letter is not taken, and why."""
        self.audit.write("letter refused", site=site, round=self.round, step=step, reason=str(error))
