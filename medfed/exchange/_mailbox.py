"""Small messages over an object store: where each is stored, what survives a kill, and what is accepted.

    the hub    glob/<study>/l-<step>-<site>/m     its message for a step to a site
    a site     up/<study>/<site>/l-<step>/m       its message for a step to the hub

A later round's message replaces an earlier one's, so their number stays what one round needs. Each party also
stores the message that it wrote last in its own folder and uses that copy after a restart: nobody in between
can make it write twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from medfed.errors import MedfedError, WireError
from medfed.exchange._study_store import StudyStore
from medfed.files import write_whole
from medfed.wire.messages import FORMAT, Message, ReceivedMessage, open_message, seal_message
from medfed.wire.signing import HUB

# The mode of a file that only its owner can read.
SECRET_MODE = 0o600


@dataclass(frozen=True)
class SiteMailbox:
    """A site's messages to the hub, and the hub's to it."""

    objects: StudyStore
    folder: Path

    def write(self, run: str, round: int, attempt: int, step: str, data: bytes) -> None:
        """Write a message to this site's folder, unless one of this attempt or a later one is there."""
        previous = self.written(step)
        if previous is None or previous.run != run or previous.when < (round, attempt):
            own = self.objects
            message = Message(FORMAT, own.study_digest, run, own.party, HUB, round, attempt, step, data)
            write_whole(self._path(step), seal_message(message, own.seal))

    def written(self, step: str) -> Message | None:
        """Return the message for a step that this site wrote last."""
        path, own = self._path(step), self.objects
        return (
            open_message(path.read_bytes(), own.seal, own.party, own.study_digest) if path.exists() else None
        )

    def write_secret(self, run: str, name: str, secret: bytes) -> None:
        """Store a secret of this run in this site's folder, readable by its owner only."""
        write_whole(self._secret_path(run, name), secret, mode=SECRET_MODE)

    def read_secret(self, run: str, name: str) -> bytes | None:
        """Return a secret of this run, or None."""
        path = self._secret_path(run, name)
        return path.read_bytes() if path.exists() else None

    def deliver(self, step: str) -> None:
        """Store the message for a step where the hub finds it."""
        name = self.objects.site_object(self.objects.party, f"l-{step}")
        self.objects.store.put(name, self._path(step).read_bytes())

    def deliver_lost(self) -> list[str]:
        """Store again each message in whose place is nothing or another; return the steps that they are for.

        A broker that lost what it had stored last may show an older message again.
        """
        own = self.objects
        paths = sorted(self.folder.glob("*.letter"))
        lost = [
            path.stem
            for path in paths
            if own.get_site_object(own.party, f"l-{path.stem}") != path.read_bytes()
        ]
        for step in lost:
            self.deliver(step)
        return lost

    def find(self, run: str, round: int, min_attempts: Mapping[str, int]) -> Message | None:
        """Return the hub's message for one of these steps of this round, or None if there is none yet."""
        site = self.objects.party
        for step, min_attempt in min_attempts.items():
            data = self.objects.get_hub_object(f"l-{step}-{site}")
            if data is None:
                continue
            message = open_message(data, self.objects.seal, HUB, self.objects.study_digest)
            if message.to != site or message.step != step:
                raise WireError(
                    f"the hub's message for step '{step}' is '{message.step[:20]}' for another site"
                )
            if (message.run, message.round) == (run, round) and message.attempt >= min_attempt:
                return message
        return None

    def _path(self, step: str) -> Path:
        return self.folder / f"{step}.letter"

    def _secret_path(self, run: str, name: str) -> Path:
        return self.folder / f"{name}-{run}.secret"


class _WrittenMessages(msgspec.Struct, frozen=True):
    round: int
    attempt: int
    messages: dict[str, bytes] = msgspec.field(name="letters")


@dataclass(frozen=True)
class HubMailbox:
    """The hub's messages to the sites, and theirs to it."""

    objects: StudyStore
    run: str
    folder: Path

    def write(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        """Write messages to the hub's folder, unless some of this attempt or a later one are there.

        Returns the messages that are valid: those given, or the earlier ones.
        """
        previous = self.written(step)
        if previous is not None and previous[0] >= (round, attempt):
            return previous[1]
        write_whole(self._path(step), msgspec.json.encode(_WrittenMessages(round, attempt, dict(messages))))
        return messages

    def written(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        """Return round and attempt of the messages for a step that the hub wrote last, and those messages."""
        path = self._path(step)
        if not path.exists():
            return None
        written = msgspec.json.decode(path.read_bytes(), type=_WrittenMessages)
        return (written.round, written.attempt), written.messages

    def deliver(self, round: int, attempt: int, step: str, site: str, data: bytes) -> None:
        """Store a message where its site finds it."""
        self.objects.store.put(self._name(step, site), self._sealed(round, attempt, step, site, data))

    def _name(self, step: str, site: str) -> str:
        return self.objects.hub_object(f"l-{step}-{site}")

    def _sealed(self, round: int, attempt: int, step: str, site: str, data: bytes) -> bytes:
        message = Message(FORMAT, self.objects.study_digest, self.run, HUB, site, round, attempt, step, data)
        return seal_message(message, self.objects.seal)

    def deliver_lost(self, round: int) -> str:
        """Store the newest step's messages again if the store holds others, or none, and they are of `round`.

        Returns the step; "" if nothing was lost. A store that lost something lost what came last.
        """
        paths = self.folder.glob("*.letters")
        newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
        written = None if newest is None else self.written(newest.stem)
        if newest is None or written is None or written[0][0] != round:
            return ""
        when, step = written[0], newest.stem
        wanted = {self._name(step, site): (site, data) for site, data in written[1].items()}
        stored: dict[str, bytes] = {}
        self.objects.store.get_many(
            list(wanted), lambda name, data: stored.update({name: bytes(data)}), skip_missing=True
        )
        lost = {
            site: data
            for name, (site, data) in wanted.items()
            if stored.get(name) != self._sealed(*when, step, site, data)
        }
        for site, data in lost.items():
            self.deliver(*when, step, site, data)
        return step if lost else ""

    def deliver_again(self) -> None:
        """Store again the messages for each step that the hub wrote last."""
        for path in sorted(self.folder.glob("*.letters")):
            written = self.written(path.stem)
            assert written is not None
            (round, attempt), messages = written
            for site, data in messages.items():
                self.deliver(round, attempt, path.stem, site, data)

    def find(self, round: int, attempt: int, step: str, site: str) -> ReceivedMessage | None:
        """Return a site's message for a step of this round and attempt, or None if there is none yet."""
        try:
            data = self.objects.get_site_object(site, f"l-{step}")
            if data is None:
                return None
            message = open_message(data, self.objects.seal, site, self.objects.study_digest)
            if message.step != step:
                raise WireError(f"its message for step '{step}' is one for step '{message.step[:20]}'")
        except MedfedError as error:
            return ReceivedMessage(
                site, error=type(error)(f"site '{site}', round {round}, step {step}: {error}")
            )
        if (message.run, message.when) != (self.run, (round, attempt)):
            return None  # a replay of an older round's or another run's message
        return ReceivedMessage(site, message, data)

    def _path(self, step: str) -> Path:
        return self.folder / f"{step}.letters"
