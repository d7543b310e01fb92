"""Letters over a depot: where each lies, what of a party's own survives a kill, and what of
the others' is believed.

    the hub    glob/<study>/l-<step>-<site>/m     its letter of a step to a site
    a site     up/<study>/<site>/l-<step>/m       its letter of a step to the hub

A later round's letter takes an earlier one's place, so their number stays what one round needs. What a
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
from medfed.exchange._object_store import Depot, hub_notice, site_notice
from medfed.wire.messages import FORMAT, Delivery, Letter, opened_letter, sealed_letter
from medfed.wire.signing import HUB, Seal


@dataclass(frozen=True)
class SiteBox:
    """A site's letters to the hub, and the hub's to it."""

    depot: Depot
    seal: Seal
    study: str
    site: str
    folder: Path

    def keep(self, run: str, round: int, attempt: int, step: str, data: bytes) -> None:
        """Write a letter into this site's folder, unless one of this time or a later one is there already."""
        before = self.kept(step)
        if before is None or before.run != run or before.when < (round, attempt):
            letter = Letter(FORMAT, self.study, run, self.site, HUB, round, attempt, step, data)
            _write_whole(self.folder / f"{step}.letter", sealed_letter(letter, self.seal))

    def kept(self, step: str) -> Letter | None:
        """Return the letter of a step that this site wrote last."""
        path = self.folder / f"{step}.letter"
        return opened_letter(path.read_bytes(), self.seal, self.site, self.study) if path.exists() else None

    def hide(self, run: str, name: str, secret: bytes) -> None:
        """Keep a secret of this run in this site's folder, for its owner's eyes only."""
        write_secret(self.folder / f"{name}-{run}.secret", secret)

    def hidden(self, run: str, name: str) -> bytes | None:
        """Return a secret of this run."""
        path = self.folder / f"{name}-{run}.secret"
        return path.read_bytes() if path.exists() else None

    def deliver(self, step: str) -> None:
        """Put the letter of a step where the hub finds it."""
        data = (self.folder / f"{step}.letter").read_bytes()
        self.depot.put(site_notice(self.study, self.site, f"l-{step}"), data)

    def find(self, run: str, round: int, sought: Mapping[str, int]) -> Letter | None:
        """Return the hub's letter of one of these steps for this round, or None if there is none yet."""
        for step, attempt in sought.items():
            data = self.depot.get(hub_notice(self.study, f"l-{step}-{self.site}"))
            if data is not None:
                letter = opened_letter(data, self.seal, HUB, self.study)
                if letter.to != self.site or letter.step != step:
                    raise WireError(
                        f"a letter of the hub for step '{step}' is '{letter.step[:20]}' for another site"
                    )
                if (letter.run, letter.round) == (run, round) and letter.attempt >= attempt:
                    return letter
        return None


class _Record(msgspec.Struct, frozen=True):
    round: int
    attempt: int
    letters: dict[str, bytes]


@dataclass(frozen=True)
class HubBox:
    """The hub's letters to the sites, and theirs to it."""

    depot: Depot
    seal: Seal
    study: str
    run: str
    folder: Path

    def keep(self, round: int, attempt: int, step: str, letters: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Write letters into the hub's folder, unless some of this time or later are
        there; return what stands.
        """
        before = self.kept(step)
        if before is not None and before[0] >= (round, attempt):
            return before[1]
        _write_whole(
            self.folder / f"{step}.letters", msgspec.json.encode(_Record(round, attempt, dict(letters)))
        )
        return letters

    def kept(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        """Return when the hub last wrote letters of a step, and those letters."""
        path = self.folder / f"{step}.letters"
        if not path.exists():
            return None
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
        return (record.round, record.attempt), record.letters

    def deliver(self, round: int, attempt: int, step: str, site: str, data: bytes) -> None:
        """Put a letter where its site finds it."""
        letter = Letter(FORMAT, self.study, self.run, HUB, site, round, attempt, step, data)
        self.depot.put(hub_notice(self.study, f"l-{step}-{site}"), sealed_letter(letter, self.seal))

    def find(self, round: int, attempt: int, step: str, site: str) -> Delivery | None:
        """Return a site's letter of a step for this round and attempt, or None if there is none yet."""
        data = self.depot.get(site_notice(self.study, site, f"l-{step}"))
        if data is None:
            return None
        try:
            letter = opened_letter(data, self.seal, site, self.study)
            if letter.step != step:
                raise WireError(f"its letter for step '{step}' is one of step '{letter.step[:20]}'")
        except MedfedError as error:
            return Delivery(site, error=type(error)(f"site '{site}', round {round}, step {step}: {error}"))
        # An older round's or another run's, put there again by whoever can: no letter of this step yet.
        return (
            Delivery(site, letter, data)
            if (letter.run, letter.when) == (self.run, (round, attempt))
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
