"""A site's side of an exchange over a depot; what is written where stands in `_meeting.py`."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from medfed.errors import ExchangeError, WireError
from medfed.exchange._chunks import Outgoing, bring, bring_ahead, cut, digest_of, measured
from medfed.exchange._exchange import Receipt
from medfed.exchange._mailbox import SiteBox
from medfed.exchange._manifest import PROTOCOL, Manifest, Notice, manifest, notice, party_name, sealed
from medfed.exchange._object_store import (
    Depot,
    Missing,
    Unreachable,
    global_prefix,
    hub_notice,
    manifest_name,
    site_notice,
    update_prefix,
)
from medfed.exchange._protocol import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    SILENT_HEARTBEATS,
    kept_text,
    locked,
    log,
    patiently,
    paused,
    study_text,
)
from medfed.wire import encoding as wire
from medfed.wire.messages import Letter, opened_letter
from medfed.wire.signing import HUB, Seal, Unsigned
from medfed.wire.update import Global, Update

# How many rounds' models a site keeps: the newest, and the one its last checkpoint may have
# been trained from.
KEPT_MODELS = 2

# How long a site that stops tries to say so.
FAREWELL_S = 10.0

_T = TypeVar("_T")


class SiteMeeting:
    """A site's side of an exchange over a depot."""

    def __init__(self, depot: Depot, seal: Seal, study: str, site: str, folder: Path) -> None:
        self._depot, self._seal, self._study, self._site = depot, seal, study, party_name(site)
        self._folder = folder / "exchange"
        self._inbox, self._outbox = self._folder / "inbox", self._folder / "outbox"
        self._lock = locked(self._folder / "lock", f"site '{site}'")
        self._session = kept_text(self._folder / "session", uuid.uuid4().hex)
        self._who = f"site '{site}'"
        self._letters = SiteBox(depot, seal, study, site, self._folder / "letters")
        self._told: set[str] = set()
        self._ousted: ExchangeError | None = None
        # What the hub said last, as it was opened: its signature is not checked again at every look.
        self._opened: dict[str, tuple[bytes, Manifest | Notice]] = {}
        # The update that was measured last, and its manifest: what `receipt` says of it is what `send` sends.
        self._measured: tuple[Update, Manifest] | None = None
        self._stopped = threading.Event()
        # Hears, once each, why something in the hub's name was refused.
        self.refused: Callable[[str], None] = lambda reason: None
        # The file of the model that was fetched last, and when the other side was last heard
        # (seconds since 1970).
        self.taken: Path | None = None
        self.contact_s: float | None = None
        try:
            self._patiently("joins", self._claim)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._live, name=f"medfed-here-{site}", daemon=True).start()

    # -- the two verbs, and the farewell

    def fetch(self, site: str, round: int) -> Global:
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            self._raise_if_ousted()
            try:
                self._send_what_was_left()
                found = self._offered()
                if found is not None:
                    path = self._again(found, round)
                    if path is None and found.round >= round:
                        path = self._bring(found)
                    if path is not None:
                        self.taken, self.contact_s = path, time.time()
                        return wire.read_global(path, self._study)
                    self._send_again_what_was_lost(found)
                self._raise_if_closed(round)
                pause = FIRST_PAUSE_S
                if self._bring_ahead(round):
                    began = time.monotonic()  # more is here soon
            except (WireError, Missing) as error:
                # Not raised: whoever can write to the place in between could then stop every site.
                self._refuse("model", error)
            except (Unreachable, OSError) as error:
                pause = self._pause(pause, error, "fetch")
                continue
            self._depot.wait(max(0.01, min(LONGEST_PAUSE_S, time.monotonic() - began)))

    def receipt(self, update: Update) -> Receipt:
        found = self._measure(update)
        return Receipt(f"hub, {self._depot.way}", found.bytes, digest_of(found.chunks).hex())

    def _measure(self, update: Update) -> Manifest:
        if self._measured is None or self._measured[0] is not update:
            size, chunks = measured(wire.update_pieces(update, self._study), self._depot.chunk_bytes)
            self._measured = update, self._manifest(update.round, size, chunks)
        return self._measured[1]

    def send(self, update: Update) -> None:
        self._raise_if_ousted()
        going = Outgoing(self._outbox, update.round)
        for old in range(max(0, update.round - KEPT_MODELS - 2), update.round - 1):
            Outgoing(self._outbox, old).remove()
        if going.delivered:
            return
        try:
            self._patiently("sends", lambda: self._write_and_deliver(going, update))
        finally:
            # One that came too late may still be on its way into the file, which the next update
            # is written over.
            going.settle()
            self._measured = None

    @property
    def closed(self) -> bool:
        return False  # what the hub says is read at a merge; asking before would cost a message a step

    def withdraw(self, site: str, reason: str) -> None:
        until = time.monotonic() + FAREWELL_S
        while True:
            try:
                return self._say("withdrawn", reason[:2000])
            except (Unreachable, OSError):
                if time.monotonic() > until:
                    return None  # the deadline of the round will say it
                time.sleep(FIRST_PAUSE_S)

    def study_text(self) -> str:
        """Return the study file that the hub offers, waiting for it. Whoever calls holds its digest
        to what was agreed.
        """
        return study_text(self._depot, self._seal, self._study, self._patiently)

    def close(self) -> None:
        """Stop being here; what was sent is sent."""
        self._stopped.set()
        self._depot.close()
        self._lock.close()

    # -- letters

    @property
    def signed(self) -> bool:
        return not isinstance(self._seal, Unsigned)

    def post(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        self._raise_if_ousted()
        run = kept_text(self._folder / "run", "")
        self._patiently("writes", lambda: self._letters.keep(run, round, attempt, step, data))
        self._patiently("writes", lambda: self._letters.deliver(step))

    def posted(self, site: str, step: str) -> Letter | None:
        found = self._letters.kept(step)
        return found if found is not None and found.run == kept_text(self._folder / "run", "") else None

    def read(self, site: str, round: int, sought: Mapping[str, int]) -> Letter | None:
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            self._raise_if_ousted()
            try:
                if self._too_late(round):
                    return None
                found = self._letters.find(kept_text(self._folder / "run", ""), round, sought)
                if found is not None:
                    return found
                self._raise_if_closed(round)
                pause = FIRST_PAUSE_S
            except WireError as error:
                self._refuse("letter", error)
            except (Unreachable, OSError) as error:
                pause = self._pause(pause, error, "reads")
                continue
            self._depot.wait(max(0.01, min(LONGEST_PAUSE_S, time.monotonic() - began)))

    def open_letter(self, site: str, sealed: bytes, party: str) -> Letter:
        return opened_letter(sealed, self._seal, party, self._study, kept_text(self._folder / "run", ""))

    def recall(self, site: str, round: int) -> None:
        going = Outgoing(self._outbox, round)
        if going.complete or going.delivered:
            # An empty piece stands for none: a site cannot remove what it stored at a broker.
            name = manifest_name(update_prefix(self._study, self._site, round))
            self._patiently("takes back its update", lambda: self._depot.put(name, b""))
            going.remove()

    def keep(self, site: str, name: str, secret: bytes) -> None:
        run = kept_text(self._folder / "run", "")
        self._patiently("keeps a secret", lambda: self._letters.hide(run, name, secret))

    def kept(self, site: str, name: str) -> bytes | None:
        return self._letters.hidden(kept_text(self._folder / "run", ""), name)

    # -- receiving

    def _offered(self) -> Manifest | None:
        found, _ = self._said("now")
        if found is None:
            return None
        pinned = kept_text(self._folder / "run", found.run)
        if found.run != pinned:
            raise WireError(
                f"it is of another run of this study than this site takes part in ({found.run[:8]}, not {pinned[:8]}); if "
                f"the study was started anew, start this site with a new folder"
            )
        newest = max(self._models(), default=-1)
        if found.round < newest:
            raise WireError(
                f"it is that of round {found.round}, and this site already has that of round {newest}: an older one is "
                f"not taken"
            )
        return found

    def _said(self, what: str) -> tuple[Manifest | None, bool]:
        """Return the hub's manifest of its newest model (`now`) or the `coming` one, and whether it
        was not seen before.
        """
        data = self._depot.get(hub_notice(self._study, what))
        if data is None:
            return None, False
        known = self._opened.get(what)
        if known is None or known[0] != data:
            self._opened[what] = data, manifest(data, self._seal, HUB, "global", self._study)
        found = self._opened[what][1]
        assert isinstance(found, Manifest)
        return found, known is not self._opened[what]

    def _bring(self, found: Manifest) -> Path:
        path = self._inbox / f"r{found.round:05d}.global"
        known = path.with_suffix(".chunks")
        chunks = "\n".join(found.chunks)
        if not (path.exists() and known.exists() and known.read_text() == chunks):
            bring(self._depot, found, global_prefix(self._study, found.round), path)
            known.write_text(chunks)
        received = wire.read_global(path, self._study)
        if received.round != found.round:
            path.unlink()
            raise WireError(
                f"the manifest says round {found.round}, the model in it says round {received.round}"
            )
        for old in sorted(self._models())[:-KEPT_MODELS]:
            for suffix in (".global", ".chunks", ".partial", ".got"):
                (self._inbox / f"r{old:05d}{suffix}").unlink(missing_ok=True)
        return path

    def _bring_ahead(self, round: int) -> bool:
        """Fetch what is there already of a model that the hub is publishing; return whether
        there was anything new.
        """
        found, new = self._said("coming")
        if found is None:
            return False
        path = self._inbox / f"r{found.round:05d}.global"
        if found.round < round or path.exists() or found.run != kept_text(self._folder / "run", ""):
            return False
        return bring_ahead(self._depot, found, global_prefix(self._study, found.round), path) or new

    def _again(self, found: Manifest, round: int) -> Path | None:
        """Return the model of `round` if this site was killed after its update for the next one had left.

        Training from it again brings the site's optimiser to where it was; what it then sends was sent
        already. So a killed site's later rounds are those of one that was not killed, bit for bit.
        """
        path = self._inbox / f"r{round:05d}.global"
        sent = Outgoing(self._outbox, round + 1)
        return path if found.round == round + 1 and sent.delivered and path.exists() else None

    def _models(self) -> list[int]:
        return [int(path.stem[1:]) for path in self._inbox.glob("r*.chunks")]

    def _raise_if_closed(self, round: int) -> None:
        data = self._depot.get(hub_notice(self._study, "state"))
        if data is None:
            return
        if data != self._opened.get("state", (b"",))[0]:
            self._opened["state"] = data, notice(data, self._seal, HUB, "state", self._study)
        said = self._opened["state"][1]
        if isinstance(said, Notice) and said.text == "closed":
            raise ExchangeError(f"{self._who} waits for round {round}, but the hub has closed the study")

    # -- sending

    def _write_and_deliver(self, going: Outgoing, update: Update) -> None:
        # One made before a restart goes on: the first of a round counts, and some of it may be there already.
        if not (going.writing or (going.complete and going.intact())):
            found = self._measure(update)
            going.write(cut(wire.update_pieces(update, self._study), found.chunk_bytes), found)
        self._deliver(going)

    def _manifest(self, round: int, size: int, chunks: list[str]) -> Manifest:
        return Manifest(
            protocol=PROTOCOL,
            what="update",
            study=self._study,
            run=kept_text(self._folder / "run", ""),
            party=self._site,
            round=round,
            bytes=size,
            chunk_bytes=self._depot.chunk_bytes,
            chunks=chunks,
        )

    def _deliver(self, going: Outgoing) -> None:
        if self._too_late(going.round):
            self._tell(f"its update for round {going.round} comes too late, the hub has gone on")
            return
        said = sealed(going.manifest, self._seal)
        self._depot.put(site_notice(self._study, self._site, "coming"), said)
        prefix = update_prefix(self._study, self._site, going.round)
        self._depot.put_many(going.chunks(prefix), going.arrived)
        name = manifest_name(prefix)
        self._depot.put(name, said, once=self._depot.get(name) != b"")
        going.mark_delivered()

    def _too_late(self, round: int) -> bool:
        try:
            found = self._offered()
        except WireError:
            return False
        return found is not None and found.round >= round

    def _send_what_was_left(self) -> None:
        for path in sorted(self._outbox.glob("r*.manifest")):
            going = Outgoing(self._outbox, int(path.stem[1:]))
            if going.delivered:
                continue
            if not self._too_late(going.round) and going.intact():
                self._deliver(going)
            if not going.delivered:
                going.remove()

    def _send_again_what_was_lost(self, found: Manifest) -> None:
        """Send the update once more that the hub still waits for, if the place in between holds it no longer.

        A broker's disk was replaced or a share restored, or another run of the study was
        begun and cleared it.
        """
        going = Outgoing(self._outbox, found.round + 1)
        name = manifest_name(update_prefix(self._study, self._site, going.round))
        lost = going.delivered and going.complete and self._depot.get(name) is None
        # What the hub has merged it clears away, after it has published; so this is asked after.
        if lost and not self._too_late(going.round) and going.intact():
            self._tell(f"its update for round {going.round} is not there any more; it is sent again")
            going.mark_lost()
            self._deliver(going)

    # -- being here

    def _claim(self) -> None:
        """Refuse to start where another process already speaks as this site."""
        where = site_notice(self._study, self._site, "here")
        first = self._depot.get(where)
        until = time.monotonic() + SILENT_HEARTBEATS * self._depot.heartbeat_s
        while self._others(first) and time.monotonic() < until:
            time.sleep(0.2)
            if self._depot.get(where) != first:
                raise ExchangeError(
                    f"{self._who} already takes part from another folder or machine; only one process may. If that one "
                    f"is wanted here, stop it there first"
                )
        self._here(0)
        if self._depot.get(site_notice(self._study, self._site, "withdrawn")) is not None:
            self._say("withdrawn", "")

    def _others(self, data: bytes | None) -> bool:
        if data is None:
            return False
        try:
            return notice(data, self._seal, self._site, "here", self._study).session != self._session
        except WireError:
            return False

    def _live(self) -> None:
        count = 0
        while not self._stopped.wait(self._depot.heartbeat_s):
            try:
                if self._others(self._depot.get(site_notice(self._study, self._site, "here"))):
                    self._ousted = ExchangeError(
                        f"{self._who}: another process has taken its place, while this one was silent; this one stops"
                    )
                    return
                count += 1
                self._here(count)
            except Exception as error:  # a sign of life is never worth a round: the next one is tried
                log.debug("%s: no sign of life sent: %s", self._who, error)

    def _here(self, count: int) -> None:
        self._say("here", "", count)

    def _say(self, what: str, text: str, count: int = 0) -> None:
        said = Notice(PROTOCOL, what, self._study, self._site, text, self._session, count)  # type: ignore[arg-type]
        self._depot.put(site_notice(self._study, self._site, what), sealed(said, self._seal))
        self.contact_s = time.time()

    def _raise_if_ousted(self) -> None:
        if self._ousted is not None:
            raise self._ousted

    # -- patience

    def _patiently(self, doing: str, call: Callable[[], _T]) -> _T:
        return patiently(self._tell, doing, call, self._raise_if_ousted)

    def _pause(self, pause: float, error: Exception, doing: str) -> float:
        return paused(self._tell, pause, error, doing)

    def _refuse(self, what: str, error: Exception) -> None:
        """Say once, and hand on, what is not as the hub would send it; what is only late is said alone."""
        reason = f"the hub's {what} is refused: {error}"
        told = f"{reason}; waiting for a good one"
        if isinstance(error, WireError) and told not in self._told:
            self.refused(reason)
        self._tell(told)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s: %s", self._who, what)
