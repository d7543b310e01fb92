"""Letters over a store: where each lies, what of a party's own survives a kill, and what of
the others' is believed.

    the hub    glob/<study>/l-<step>-<site>/m     its message of a step to a site
    a site     up/<study>/<site>/l-<step>/m       its message of a step to the hub

A later round's message takes an earlier one's place, so their number stays what one round needs. What a
party wrote last is also in its own folder, and that is what it goes by after a restart: nobody in between
can make it write twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from medfed.errors import MedfedError, WireError
from medfed.exchange._object_store import ObjectStore, hub_control_name, site_control_name
from medfed.wire.messages import FORMAT, Message, ReceivedMessage, open_message, seal_message
from medfed.wire.signing import HUB, Seal


@dataclass(frozen=True)
class SiteMailbox:
    """A site's messages to the hub, and the hub's to it."""

    store: ObjectStore
    seal: Seal
    study: str
    site: str
    folder: Path

    def keep(self, run: str, round: int, attempt: int, step: str, data: bytes) -> None:
        """Write a message into this site's folder, unless one of this time or a later one is there already."""
        before = self.kept(step)
        if before is None or before.run != run or before.when < (round, attempt):
            message = Message(FORMAT, self.study, run, self.site, HUB, round, attempt, step, data)
            _write_whole(self.folder / f"{step}.letter", seal_message(message, self.seal))

    def kept(self, step: str) -> Message | None:
        """Return the message of a step that this site wrote last."""
        path = self.folder / f"{step}.letter"
        return open_message(path.read_bytes(), self.seal, self.site, self.study) if path.exists() else None

    def hide(self, run: str, name: str, secret: bytes) -> None:
        """Keep a secret of this run in this site's folder, for its owner's eyes only."""
        write_secret(self.folder / f"{name}-{run}.secret", secret)

    def hidden(self, run: str, name: str) -> bytes | None:
        """Return a secret of this run."""
        path = self.folder / f"{name}-{run}.secret"
        return path.read_bytes() if path.exists() else None

    def deliver(self, step: str) -> None:
        """Put the message of a step where the hub finds it."""
        data = (self.folder / f"{step}.letter").read_bytes()
        self.store.put(site_control_name(self.study, self.site, f"l-{step}"), data)

    def find(self, run: str, round: int, sought: Mapping[str, int]) -> Message | None:
        """Return the hub's message of one of these steps for this round, or None if there is none yet."""
        for step, attempt in sought.items():
            data = self.store.get(hub_control_name(self.study, f"l-{step}-{self.site}"))
            if data is not None:
                message = open_message(data, self.seal, HUB, self.study)
                if message.to != self.site or message.step != step:
                    raise WireError(
                        f"a message of the hub for step '{step}' is '{message.step[:20]}' for another site"
                    )
                if (message.run, message.round) == (run, round) and message.attempt >= attempt:
                    return message
        return None


class _Record(msgspec.Struct, frozen=True):
    round: int
    attempt: int
    messages: dict[str, bytes]


@dataclass(frozen=True)
class HubMailbox:
    """The hub's messages to the sites, and theirs to it."""

    store: ObjectStore
    seal: Seal
    study: str
    run: str
    folder: Path

    def keep(self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Write messages into the hub's folder, unless some of this time or later are
        there; return what stands.
        """
        before = self.kept(step)
        if before is not None and before[0] >= (round, attempt):
            return before[1]
        _write_whole(
            self.folder / f"{step}.letters", msgspec.json.encode(_Record(round, attempt, dict(messages)))
        )
        return messages

    def kept(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        """Return when the hub last wrote messages of a step, and those messages."""
        path = self.folder / f"{step}.letters"
        if not path.exists():
            return None
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
        return (record.round, record.attempt), record.messages

    def deliver(self, round: int, attempt: int, step: str, site: str, data: bytes) -> None:
        """Put a message where its site finds it."""
        message = Message(FORMAT, self.study, self.run, HUB, site, round, attempt, step, data)
        self.store.put(hub_control_name(self.study, f"l-{step}-{site}"), seal_message(message, self.seal))

    def find(self, round: int, attempt: int, step: str, site: str) -> ReceivedMessage | None:
        """Return a site's message of a step for this round and attempt, or None if there is none yet."""
        data = self.store.get(site_control_name(self.study, site, f"l-{step}"))
        if data is None:
            return None
        try:
            message = open_message(data, self.seal, site, self.study)
            if message.step != step:
                raise WireError(f"its message for step '{step}' is one of step '{message.step[:20]}'")
        except MedfedError as error:
            return ReceivedMessage(
                site, error=type(error)(f"site '{site}', round {round}, step {step}: {error}")
            )
        # An older round's or another run's, put there again by whoever can: no message of this step yet.
        return (
            ReceivedMessage(site, message, data)
            if (message.run, message.when) == (self.run, (round, attempt))
            else None
        )


def write_secret(path: Path, secret: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    aside.replace(path)


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    aside.write_bytes(data)
    aside.replace(path)
