"""A site's side of an exchange over a store; what is written where stands in `_meeting.py`."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from medfed.errors import ExchangeError, WireError
from medfed.exchange._chunks import (
    OutgoingUpdate,
    combined_digest,
    download,
    measured,
    prefetch,
    split_chunks,
)
from medfed.exchange._exchange import Receipt
from medfed.exchange._mailbox import SiteMailbox
from medfed.exchange._manifest import (
    PROTOCOL,
    ControlMessage,
    Manifest,
    encode_sealed,
    manifest,
    notice,
    party_name,
)
from medfed.exchange._object_store import (
    MissingObject,
    ObjectStore,
    Unreachable,
    global_prefix,
    hub_control_name,
    manifest_name,
    site_control_name,
    update_prefix,
)
from medfed.exchange._protocol import (
    MAX_BACKOFF_S,
    MIN_BACKOFF_S,
    SILENT_AFTER_HEARTBEATS,
    acquire_lock,
    backoff,
    log,
    read_or_create,
    retry,
    study_text,
)
from medfed.wire import encoding as wire
from medfed.wire.messages import Message, open_message
from medfed.wire.signing import HUB, Seal, Unsigned
from medfed.wire.update import GlobalModel, Update

# How many rounds' models a site keeps: the newest, and the one its last checkpoint may have
# been trained from.
MAX_CACHED_MODELS = 2

# How long a site that stops tries to say so.
WITHDRAWAL_TIMEOUT_S = 10.0

_T = TypeVar("_T")


class SiteTransport:
    """A site's side of an exchange over a store."""

    def __init__(self, store: ObjectStore, seal: Seal, study: str, site: str, folder: Path) -> None:
        self._store, self._seal, self._study, self._site = store, seal, study, party_name(site)
        self._folder = folder / "exchange"
        self._inbox, self._outbox = self._folder / "inbox", self._folder / "outbox"
        self._lock = acquire_lock(self._folder / "lock", f"site '{site}'")
        self._session = read_or_create(self._folder / "session", uuid.uuid4().hex)
        self._who = f"site '{site}'"
        self._mailbox = SiteMailbox(store, seal, study, site, self._folder / "letters")
        self._told: set[str] = set()
        self._ousted: ExchangeError | None = None
        # What the hub said last, as it was opened: its signature is not checked again at every look.
        self._opened: dict[str, tuple[bytes, Manifest | ControlMessage]] = {}
        # The update that was measured last, and its manifest: what `receipt` says of it is what `send` sends.
        self._measured: tuple[Update, Manifest] | None = None
        self._stopped = threading.Event()
        # Hears, once each, why something in the hub's name was refused.
        self.on_refused: Callable[[str], None] = lambda reason: None
        # The file of the model that was fetched last, and when the other side was last heard
        # (seconds since 1970).
        self.model_path: Path | None = None
        self.last_contact_s: float | None = None
        try:
            self._retry("joins", self._claim)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._live, name=f"medfed-here-{site}", daemon=True).start()

    # -- the two verbs, and the farewell

    def fetch(self, site: str, round: int) -> GlobalModel:
        began, pause = time.monotonic(), MIN_BACKOFF_S
        while True:
            self._raise_if_ousted()
            try:
                self._send_what_was_left()
                found = self._current_manifest()
                if found is not None:
                    path = self._again(found, round)
                    if path is None and found.round >= round:
                        path = self._download(found)
                    if path is not None:
                        self.model_path, self.last_contact_s = path, time.time()
                        return wire.read_global(path, self._study)
                    self._send_again_what_was_lost(found)
                self._raise_if_closed(round)
                pause = MIN_BACKOFF_S
                if self._prefetch(round):
                    began = time.monotonic()  # more is here soon
            except (WireError, MissingObject) as error:
                # Not raised: whoever can write to the place in between could then stop every site.
                self._refuse("model", error)
            except (Unreachable, OSError) as error:
                pause = self._backoff(pause, error, "fetch")
                continue
            self._store.wait(max(0.01, min(MAX_BACKOFF_S, time.monotonic() - began)))

    def receipt(self, update: Update) -> Receipt:
        found = self._measure(update)
        return Receipt(f"hub, {self._store.channel}", found.bytes, combined_digest(found.chunks).hex())

    def _measure(self, update: Update) -> Manifest:
        if self._measured is None or self._measured[0] is not update:
            size, chunks = measured(wire.update_pieces(update, self._study), self._store.chunk_bytes)
            self._measured = update, self._manifest(update.round, size, chunks)
        return self._measured[1]

    def send(self, update: Update) -> None:
        self._raise_if_ousted()
        going = OutgoingUpdate(self._outbox, update.round)
        for old in range(max(0, update.round - MAX_CACHED_MODELS - 2), update.round - 1):
            OutgoingUpdate(self._outbox, old).remove()
        if going.delivered:
            return
        try:
            self._retry("sends", lambda: self._write_and_deliver(going, update))
        finally:
            # One that came too late may still be on its way into the file, which the next update
            # is written over.
            going.wait_written()
            self._measured = None

    @property
    def closed(self) -> bool:
        return False  # what the hub says is read at a merge; asking before would cost a message a step

    def withdraw(self, site: str, reason: str) -> None:
        until = time.monotonic() + WITHDRAWAL_TIMEOUT_S
        while True:
            try:
                return self._say("withdrawn", reason[:2000])
            except (Unreachable, OSError):
                if time.monotonic() > until:
                    return None  # the deadline of the round will say it
                time.sleep(MIN_BACKOFF_S)

    def study_text(self) -> str:
        """Return the study file that the hub offers, waiting for it. Whoever calls holds its digest
        to what was agreed.
        """
        return study_text(self._store, self._seal, self._study, self._retry)

    def close(self) -> None:
        """Stop being here; what was sent is sent."""
        self._stopped.set()
        self._store.close()
        self._lock.close()

    # -- messages

    @property
    def signed(self) -> bool:
        return not isinstance(self._seal, Unsigned)

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        self._raise_if_ousted()
        run = read_or_create(self._folder / "run", "")
        self._retry("writes", lambda: self._mailbox.keep(run, round, attempt, step, data))
        self._retry("writes", lambda: self._mailbox.deliver(step))

    def sent_message(self, site: str, step: str) -> Message | None:
        found = self._mailbox.kept(step)
        return found if found is not None and found.run == read_or_create(self._folder / "run", "") else None

    def receive_message(self, site: str, round: int, sought: Mapping[str, int]) -> Message | None:
        began, pause = time.monotonic(), MIN_BACKOFF_S
        while True:
            self._raise_if_ousted()
            try:
                if self._too_late(round):
                    return None
                found = self._mailbox.find(read_or_create(self._folder / "run", ""), round, sought)
                if found is not None:
                    return found
                self._raise_if_closed(round)
                pause = MIN_BACKOFF_S
            except WireError as error:
                self._refuse("message", error)
            except (Unreachable, OSError) as error:
                pause = self._backoff(pause, error, "reads")
                continue
            self._store.wait(max(0.01, min(MAX_BACKOFF_S, time.monotonic() - began)))

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        return open_message(sealed, self._seal, party, self._study, read_or_create(self._folder / "run", ""))

    def retract(self, site: str, round: int) -> None:
        going = OutgoingUpdate(self._outbox, round)
        if going.complete or going.delivered:
            # An empty piece stands for none: a site cannot remove what it stored at a broker.
            name = manifest_name(update_prefix(self._study, self._site, round))
            self._retry("takes back its update", lambda: self._store.put(name, b""))
            going.remove()

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        run = read_or_create(self._folder / "run", "")
        self._retry("keeps a secret", lambda: self._mailbox.hide(run, name, secret))

    def load_secret(self, site: str, name: str) -> bytes | None:
        return self._mailbox.hidden(read_or_create(self._folder / "run", ""), name)

    # -- receiving

    def _current_manifest(self) -> Manifest | None:
        found, _ = self._said("now")
        if found is None:
            return None
        pinned = read_or_create(self._folder / "run", found.run)
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
        data = self._store.get(hub_control_name(self._study, what))
        if data is None:
            return None, False
        known = self._opened.get(what)
        if known is None or known[0] != data:
            self._opened[what] = data, manifest(data, self._seal, HUB, "global", self._study)
        found = self._opened[what][1]
        assert isinstance(found, Manifest)
        return found, known is not self._opened[what]

    def _download(self, found: Manifest) -> Path:
        path = self._inbox / f"r{found.round:05d}.global"
        known = path.with_suffix(".chunks")
        chunks = "\n".join(found.chunks)
        if not (path.exists() and known.exists() and known.read_text() == chunks):
            download(self._store, found, global_prefix(self._study, found.round), path)
            known.write_text(chunks)
        received = wire.read_global(path, self._study)
        if received.round != found.round:
            path.unlink()
            raise WireError(
                f"the manifest says round {found.round}, the model in it says round {received.round}"
            )
        for old in sorted(self._models())[:-MAX_CACHED_MODELS]:
            for suffix in (".global", ".chunks", ".partial", ".got"):
                (self._inbox / f"r{old:05d}{suffix}").unlink(missing_ok=True)
        return path

    def _prefetch(self, round: int) -> bool:
        """Fetch what is there already of a model that the hub is publishing; return whether
        there was anything new.
        """
        found, new = self._said("coming")
        if found is None:
            return False
        path = self._inbox / f"r{found.round:05d}.global"
        if found.round < round or path.exists() or found.run != read_or_create(self._folder / "run", ""):
            return False
        return prefetch(self._store, found, global_prefix(self._study, found.round), path) or new

    def _again(self, found: Manifest, round: int) -> Path | None:
        """Return the model of `round` if this site was killed after its update for the next one had left.

        Training from it again brings the site's optimiser to where it was; what it then sends was sent
        already. So a killed site's later rounds are those of one that was not killed, bit for bit.
        """
        path = self._inbox / f"r{round:05d}.global"
        sent = OutgoingUpdate(self._outbox, round + 1)
        return path if found.round == round + 1 and sent.delivered and path.exists() else None

    def _models(self) -> list[int]:
        return [int(path.stem[1:]) for path in self._inbox.glob("r*.chunks")]

    def _raise_if_closed(self, round: int) -> None:
        data = self._store.get(hub_control_name(self._study, "state"))
        if data is None:
            return
        if data != self._opened.get("state", (b"",))[0]:
            self._opened["state"] = data, notice(data, self._seal, HUB, "state", self._study)
        said = self._opened["state"][1]
        if isinstance(said, ControlMessage) and said.text == "closed":
            raise ExchangeError(f"{self._who} waits for round {round}, but the hub has closed the study")

    # -- sending

    def _write_and_deliver(self, going: OutgoingUpdate, update: Update) -> None:
        # One made before a restart goes on: the first of a round counts, and some of it may be there already.
        if not (going.writing or (going.complete and going.intact())):
            found = self._measure(update)
            going.write(split_chunks(wire.update_pieces(update, self._study), found.chunk_bytes), found)
        self._deliver(going)

    def _manifest(self, round: int, size: int, chunks: list[str]) -> Manifest:
        return Manifest(
            protocol=PROTOCOL,
            what="update",
            study=self._study,
            run=read_or_create(self._folder / "run", ""),
            party=self._site,
            round=round,
            bytes=size,
            chunk_bytes=self._store.chunk_bytes,
            chunks=chunks,
        )

    def _deliver(self, going: OutgoingUpdate) -> None:
        if self._too_late(going.round):
            self._tell(f"its update for round {going.round} comes too late, the hub has gone on")
            return
        said = encode_sealed(going.manifest, self._seal)
        self._store.put(site_control_name(self._study, self._site, "coming"), said)
        prefix = update_prefix(self._study, self._site, going.round)
        self._store.put_many(going.chunks(prefix), going.arrived)
        name = manifest_name(prefix)
        self._store.put(name, said, once=self._store.get(name) != b"")
        going.mark_delivered()

    def _too_late(self, round: int) -> bool:
        try:
            found = self._current_manifest()
        except WireError:
            return False
        return found is not None and found.round >= round

    def _send_what_was_left(self) -> None:
        for path in sorted(self._outbox.glob("r*.manifest")):
            going = OutgoingUpdate(self._outbox, int(path.stem[1:]))
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
        going = OutgoingUpdate(self._outbox, found.round + 1)
        name = manifest_name(update_prefix(self._study, self._site, going.round))
        lost = going.delivered and going.complete and self._store.get(name) is None
        # What the hub has merged it clears away, after it has published; so this is asked after.
        if lost and not self._too_late(going.round) and going.intact():
            self._tell(f"its update for round {going.round} is not there any more; it is sent again")
            going.mark_lost()
            self._deliver(going)

    # -- being here

    def _claim(self) -> None:
        """Refuse to start where another process already speaks as this site."""
        where = site_control_name(self._study, self._site, "here")
        first = self._store.get(where)
        until = time.monotonic() + SILENT_AFTER_HEARTBEATS * self._store.heartbeat_s
        while self._others(first) and time.monotonic() < until:
            time.sleep(0.2)
            if self._store.get(where) != first:
                raise ExchangeError(
                    f"{self._who} already takes part from another folder or machine; only one process may. If that one "
                    f"is wanted here, stop it there first"
                )
        self._here(0)
        if self._store.get(site_control_name(self._study, self._site, "withdrawn")) is not None:
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
        while not self._stopped.wait(self._store.heartbeat_s):
            try:
                if self._others(self._store.get(site_control_name(self._study, self._site, "here"))):
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
        said = ControlMessage(PROTOCOL, what, self._study, self._site, text, self._session, count)  # type: ignore[arg-type]
        self._store.put(site_control_name(self._study, self._site, what), encode_sealed(said, self._seal))
        self.last_contact_s = time.time()

    def _raise_if_ousted(self) -> None:
        if self._ousted is not None:
            raise self._ousted

    # -- patience

    def _retry(self, doing: str, call: Callable[[], _T]) -> _T:
        return retry(self._tell, doing, call, self._raise_if_ousted)

    def _backoff(self, pause: float, error: Exception, doing: str) -> float:
        return backoff(self._tell, pause, error, doing)

    def _refuse(self, what: str, error: Exception) -> None:
        """Say once, and hand on, what is not as the hub would send it; what is only late is said alone."""
        reason = f"the hub's {what} is refused: {error}"
        told = f"{reason}; waiting for a good one"
        if isinstance(error, WireError) and told not in self._told:
            self.on_refused(reason)
        self._tell(told)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s: %s", self._who, what)
