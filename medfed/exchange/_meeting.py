"""How a site and the hub speak over a depot: what is written where, what is believed, and how each goes on after a kill.

    the hub    glob/<study>/coming/m                 the manifest of the model that it is about to publish
               glob/<study>/r<N>/c/<i>-<digest>      the chunks of the model after N merges
               glob/<study>/now/m                    its manifest, sealed, written last and over the one before
    a site     up/<study>/<site>/coming/m            the manifest of the update that it is about to send
               up/<study>/<site>/r<N>/c/<i>-<digest> the chunks of its update for round N
               up/<study>/<site>/r<N>/m              its manifest, sealed, written last and once
               up/<study>/<site>/here/m              a sign of life, every few seconds
               up/<study>/<site>/withdrawn/m         why it stops, or nothing
    both       small letters, as `_letterbox.py` says

Everything is sealed (`signing.py`) and every chunk has a digest, so that the place in between can at worst be silent.
What is coming may be fetched while it is still being sent; it counts when the manifest that is written last names it.
What a party needs after a kill -9 is in its own folder: a site's last two models and its update on the way, the hub's
name for this run and the updates it holds already. A site that comes back with its folder sends what was not yet sent.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from medfed import wire
from medfed.errors import ExchangeError, MedfedError, SiteError, WireError
from medfed.exchange._chunks import Outgoing, bring, bring_ahead, cut, digest_of, measured
from medfed.exchange._depot import (
    Depot,
    Missing,
    Unreachable,
    chunk_name,
    global_prefix,
    hub_notice,
    manifest_name,
    site_notice,
    update_prefix,
)
from medfed.exchange._exchange import Arrival, Receipt
from medfed.exchange._letterbox import HubBox, SiteBox
from medfed.exchange._manifest import PROTOCOL, Manifest, Notice, manifest, notice, party_name, sealed
from medfed.letters import Delivery, Letter, opened_letter
from medfed.signing import HUB, Seal, Unsigned
from medfed.update import Global, Update

log = logging.getLogger("medfed.exchange")

# The pauses between two tries of something that fails: the first and the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0

# How often bytes that do not fit their manifest are fetched again before the update is refused: a proxy or a cache may
# have damaged them once.
TRIES = 3

# An update may hold a few tensors for each of the model's (SCAFFOLD, a difference in float64). Beyond this many times the
# model's size it is refused before it fills the hub's disk.
LARGEST_UPDATE_IN_MODELS = 8
LARGEST_UPDATE_BESIDE_BYTES = 16 << 20

# A site counts as silent after this many heartbeats without one.
SILENT_HEARTBEATS = 2.5

# How many rounds' models a site keeps: the newest, and the one its last checkpoint may have been trained from.
KEPT_MODELS = 2

# How long a site that stops tries to say so.
FAREWELL_S = 10.0

# Where the study lies that was offered last, for a site that knows none yet.
NEWEST_STUDY = "glob/newest/study/m"

_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------------ a site


class SiteMeeting:
    """A site's side of an exchange over a depot."""

    def __init__(self, depot: Depot, seal: Seal, study: str, site: str, folder: Path) -> None:
        self._depot, self._seal, self._study, self._site = depot, seal, study, party_name(site)
        self._folder = folder / "exchange"
        self._inbox, self._outbox = self._folder / "inbox", self._folder / "outbox"
        self._lock = _locked(self._folder / "lock", f"site '{site}'")
        self._session = _kept(self._folder / "session", uuid.uuid4().hex)
        self._who = f"site '{site}'"
        self._letters = SiteBox(depot, seal, study, site, self._folder / "letters")
        self._told: set[str] = set()
        self._ousted: ExchangeError | None = None
        # What the hub said last, as it was opened: its signature is not checked again at every look.
        self._opened: dict[str, tuple[bytes, Manifest | Notice]] = {}
        # The update that was measured last, and its manifest: what `receipt` says of it is what `send` sends.
        self._measured: tuple[Update, Manifest] | None = None
        self._stopped = threading.Event()
        # The file of the model that was fetched last, and when the other side was last heard (seconds since 1970).
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
                self._tell(f"the hub's model is refused: {error}; waiting for a good one")
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
            # One that came too late may still be on its way into the file, which the next update is written over.
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
        """Return the study file that the hub offers, waiting for it. Whoever calls holds its digest to what was agreed."""
        return _study_text(self._depot, self._seal, self._study, self._patiently)

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
        run = _kept(self._folder / "run", "")
        self._patiently("writes", lambda: self._letters.keep(run, round, attempt, step, data))
        self._patiently("writes", lambda: self._letters.deliver(step))

    def posted(self, site: str, step: str) -> Letter | None:
        found = self._letters.kept(step)
        return found if found is not None and found.run == _kept(self._folder / "run", "") else None

    def read(self, site: str, round: int, sought: Mapping[str, int]) -> Letter | None:
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            self._raise_if_ousted()
            try:
                if self._too_late(round):
                    return None
                found = self._letters.find(_kept(self._folder / "run", ""), round, sought)
                if found is not None:
                    return found
                self._raise_if_closed(round)
                pause = FIRST_PAUSE_S
            except WireError as error:
                self._tell(f"a letter of the hub is refused: {error}; waiting for a good one")
            except (Unreachable, OSError) as error:
                pause = self._pause(pause, error, "reads")
                continue
            self._depot.wait(max(0.01, min(LONGEST_PAUSE_S, time.monotonic() - began)))

    def open_letter(self, site: str, sealed: bytes, party: str) -> Letter:
        return opened_letter(sealed, self._seal, party, self._study, _kept(self._folder / "run", ""))

    def recall(self, site: str, round: int) -> None:
        going = Outgoing(self._outbox, round)
        if going.complete or going.delivered:
            # An empty piece stands for none: a site cannot remove what it stored at a broker.
            name = manifest_name(update_prefix(self._study, self._site, round))
            self._patiently("takes back its update", lambda: self._depot.put(name, b""))
            going.remove()

    def keep(self, site: str, name: str, secret: bytes) -> None:
        run = _kept(self._folder / "run", "")
        self._patiently("keeps a secret", lambda: self._letters.hide(run, name, secret))

    def kept(self, site: str, name: str) -> bytes | None:
        return self._letters.hidden(_kept(self._folder / "run", ""), name)

    # -- receiving

    def _offered(self) -> Manifest | None:
        found, _ = self._said("now")
        if found is None:
            return None
        pinned = _kept(self._folder / "run", found.run)
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
        """Return the hub's manifest of its newest model (`now`) or the `coming` one, and whether it was not seen before."""
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
        """Fetch what is there already of a model that the hub is publishing; return whether there was anything new."""
        found, new = self._said("coming")
        if found is None:
            return False
        path = self._inbox / f"r{found.round:05d}.global"
        if found.round < round or path.exists() or found.run != _kept(self._folder / "run", ""):
            return False
        return bring_ahead(self._depot, found, global_prefix(self._study, found.round), path) or new

    def _again(self, found: Manifest, round: int) -> Path | None:
        """Return the model of `round` if this site was killed after its update for the next one had left.

        Training from it again brings the site's optimiser to where it was; what it then sends was sent already. So a
        killed site's later rounds are those of one that was not killed, bit for bit.
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
            run=_kept(self._folder / "run", ""),
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

        A broker's disk was replaced or a share restored, or another run of the study was begun and cleared it.
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
        return _patiently(self._tell, doing, call, self._raise_if_ousted)

    def _pause(self, pause: float, error: Exception, doing: str) -> float:
        return _paused(self._tell, pause, error, doing)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s: %s", self._who, what)


# ------------------------------------------------------------------------------------------------ the hub


class HubMeeting:
    """The hub's side of an exchange over a depot."""

    def __init__(self, depot: Depot, seal: Seal, study: str, folder: Path) -> None:
        self._depot, self._seal, self._study = depot, seal, study
        self._folder = folder / "exchange"
        self._spool = self._folder / "spool"
        self._lock = _locked(self._folder / "lock", "the hub")
        fresh = not (self._folder / "run").exists()
        self._run = _kept(self._folder / "run", uuid.uuid4().hex)
        self._letters = HubBox(depot, seal, study, self._run, self._folder / "letters")
        self._told: set[str] = set()
        self._current: Global | None = None
        self._largest = 0
        # What each site said last of an update that is coming, and what of it is believed.
        self._announced: dict[str, tuple[bytes, Manifest | None]] = {}
        self._signs: dict[str, tuple[bytes | None, float]] = {}
        self._silent: dict[str, tuple[bytes | None, float]] = {}
        # Whose signs of life are looked for beside those of the sites that are asked, for a display.
        self.watched: tuple[str, ...] = ()
        # Who is awaited at the moment, and until when (of time.monotonic), for a display.
        self.awaited: tuple[str, ...] = ()
        self.until: float | None = None
        if fresh:
            # What an earlier run of the same study left can be no answer to this one.
            self._patiently("clears", lambda: depot.forget_all(study))
            shutil.rmtree(self._folder / "letters", ignore_errors=True)
        self._patiently("opens", lambda: self._say("state", "open"))

    def publish(self, sent: Global, kept: Callable[[], None] = lambda: None) -> int:
        prefix = global_prefix(self._study, sent.round)
        stored: set[str] = set()
        size, digests = measured(wire.global_pieces(sent), self._depot.chunk_bytes)
        said = Manifest(
            protocol=PROTOCOL,
            what="global",
            study=self._study,
            run=self._run,
            party=HUB,
            round=sent.round,
            bytes=size,
            chunk_bytes=self._depot.chunk_bytes,
            chunks=digests,
        )
        data = sealed(said, self._seal)

        def chunks() -> Iterator[tuple[str, bytes | memoryview]]:
            pieces = cut(wire.global_pieces(sent), self._depot.chunk_bytes)
            for index, (chunk, digest) in enumerate(zip(pieces, digests, strict=True)):
                name = chunk_name(prefix, index, digest)
                if name not in stored:
                    yield name, chunk

        self._patiently("publishes", lambda: self._depot.put(hub_notice(self._study, "coming"), data))
        self._patiently("publishes", lambda: self._depot.put_many(chunks(), stored.add))
        kept()
        self._patiently("publishes", lambda: self._depot.put(hub_notice(self._study, "now"), data))
        self._patiently("clears", lambda: self._depot.forget(self._study, sent.round))
        self._current = sent
        self._largest = LARGEST_UPDATE_IN_MODELS * size + LARGEST_UPDATE_BESIDE_BYTES
        return size

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[Arrival]:
        try:
            yield from self._collected(round, sites, deadline_s)
        finally:
            self.awaited, self.until = (), None

    def _collected(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[Arrival]:
        start, pause = time.monotonic(), FIRST_PAUSE_S
        awaited, heard, moved = sorted(sites), 0, start
        self.until = None if deadline_s is None else start + deadline_s
        while awaited:
            self.awaited = tuple(awaited)
            try:
                for site in list(awaited):
                    arrival = self._look(round, site, start)
                    if arrival is None:
                        if self._bring_ahead(round, site):
                            moved = time.monotonic()
                    else:
                        awaited.remove(site)
                        self.awaited = tuple(awaited)
                        heard += 1
                        self._silent.pop(site, None)
                        yield arrival
                pause = FIRST_PAUSE_S
                self._listen({*sites, *self.watched})
            except (Unreachable, OSError) as error:
                pause = _paused(self._tell, pause, error, "collects")
            passed = time.monotonic() - start
            if deadline_s is not None and passed >= deadline_s:
                for site in awaited:
                    # Silent since: it is not awaited again until it gives a sign of life.
                    self._silent[site] = self._signs.get(site, (None, start))
                return
            if heard and all(self._is_silent(site) for site in awaited):
                return
            left = LONGEST_PAUSE_S if deadline_s is None else deadline_s - passed
            # While an update is coming the next look is soon, else a while that grows with what was waited.
            self._depot.wait(max(0.01, min(left, LONGEST_PAUSE_S, time.monotonic() - moved)))

    def close(self) -> None:
        try:
            self._say("state", "closed")
        except (Unreachable, OSError) as error:
            self._tell(f"the sites could not be told that it closes: {error}")
        self.leave()

    def leave(self) -> None:
        """Stop without a word: the sites wait until the hub comes back."""
        self._depot.close()
        self._lock.close()

    def offer(self, study_text: str) -> None:
        """Let every site fetch the study file, so that its people can read what they agree to."""
        said = sealed(Notice(PROTOCOL, "study", self._study, HUB, study_text, self._run), self._seal)
        for where in (hub_notice(self._study, "study"), NEWEST_STUDY):
            self._patiently("offers the study", lambda where=where: self._depot.put(where, said))  # type: ignore[misc]

    def present(self) -> dict[str, float]:
        """Return for each site that was awaited how many seconds ago it gave a sign of life that was new."""
        now = time.monotonic()
        return {site: now - when for site, (data, when) in self._signs.items() if data is not None}

    def here(self) -> set[str]:
        """Return the sites that gave a sign of life a moment ago."""
        recent = SILENT_HEARTBEATS * self._depot.heartbeat_s
        return {site for site, ago in self.present().items() if ago <= recent}

    # -- letters

    def post_all(
        self, round: int, attempt: int, step: str, letters: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        stands = self._patiently("writes", lambda: self._letters.keep(round, attempt, step, letters))
        for site, data in stands.items():
            self._patiently(
                "writes",
                lambda site=site, data=data: self._letters.deliver(round, attempt, step, site, data),  # type: ignore[misc]
            )
        return stands

    def posted_all(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        return self._letters.kept(step)

    def gather(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[Delivery]:
        start, pause = time.monotonic(), FIRST_PAUSE_S
        awaited = sorted(sites)
        while awaited:
            try:
                for site in list(awaited):
                    found = self._letters.find(round, attempt, step, site) or self._gone(round, site)
                    if found is not None:
                        awaited.remove(site)
                        yield found
                pause = FIRST_PAUSE_S
                self._listen(sites)
            except (Unreachable, OSError) as error:
                pause = _paused(self._tell, pause, error, "gathers")
            passed = time.monotonic() - start
            if deadline_s is not None and passed >= deadline_s:
                return
            left = LONGEST_PAUSE_S if deadline_s is None else deadline_s - passed
            self._depot.wait(max(0.01, min(left, LONGEST_PAUSE_S, passed)))

    def _gone(self, round: int, site: str) -> Delivery | None:
        found = self._withdrawn(round, site)
        return None if found is None else Delivery(site, error=found.error)

    # -- one site's answer

    def _look(self, round: int, site: str, start: float) -> Arrival | None:
        prefix = update_prefix(self._study, site, round)
        data = self._depot.get(manifest_name(prefix))
        if not data:
            return self._withdrawn(round, site)
        size = 0
        try:
            found = manifest(data, self._seal, site, "update", self._study)
            size = found.bytes
            self._check(found, round)
            path = self._spooled(site)
            self._bring(found, prefix, path)
            assert self._current is not None
            update = wire.read_update(path, self._current.weights, self._study)
        except (Unreachable, OSError):
            raise
        except MedfedError as error:
            return Arrival(
                site, None, type(error)(f"site '{site}', round {round}: {error}"), max(size, len(data))
            )
        return Arrival(site, update, None, size, time.monotonic() - start)

    def _check(self, found: Manifest, round: int) -> None:
        if found.round != round or found.run != self._run:
            raise WireError(
                f"its manifest is for round {found.round} of run {found.run[:8]}, expected round {round} of run "
                f"{self._run[:8]}: it is a copy of an older one"
            )
        if self._largest and found.bytes > self._largest:
            raise WireError(f"it holds {found.bytes} bytes; for this model at most {self._largest} are taken")

    def _bring_ahead(self, round: int, site: str) -> bool:
        """Fetch what is there already of an update that a site is sending; return whether there was anything new."""
        data = self._depot.get(site_notice(self._study, site, "coming"))
        if data is None:
            return False
        new = data != self._announced.get(site, (b"", None))[0]
        try:
            if new:
                self._announced[site] = data, None
                self._announced[site] = data, manifest(data, self._seal, site, "update", self._study)
            found = self._announced[site][1]
            if found is None:
                return False
            self._check(found, round)
        except WireError:
            # An earlier round's; of this one's, the manifest at its end says what is wrong with it.
            return False
        prefix = update_prefix(self._study, site, round)
        return bring_ahead(self._depot, found, prefix, self._spooled(site), write_over=True) or new

    def _spooled(self, site: str) -> Path:
        return self._spool / f"{site}.update"

    def _bring(self, found: Manifest, prefix: str, path: Path) -> None:
        for attempt in range(TRIES):
            try:
                # Brought again even where an earlier process had it whole: nobody vouches for that file's bytes.
                return bring(self._depot, found, prefix, path, write_over=True)
            except (WireError, Missing) as error:
                if attempt == TRIES - 1:
                    raise WireError(str(error)) from None
                time.sleep(FIRST_PAUSE_S)
        return None

    def _withdrawn(self, round: int, site: str) -> Arrival | None:
        data = self._depot.get(site_notice(self._study, site, "withdrawn"))
        if data is None:
            return None
        try:
            said = notice(data, self._seal, site, "withdrawn", self._study)
        except WireError as error:
            self._tell(f"a withdrawal of site '{site}' is refused: {error}")
            return None
        return (
            Arrival(site, None, SiteError(f"site '{site}', round {round}: {said.text}"))
            if said.text
            else None
        )

    # -- who is there

    def _listen(self, sites: Iterable[str]) -> None:
        now = time.monotonic()
        for site in sites:
            known, _ = self._signs.get(site, (None, 0.0))
            data = self._depot.get(site_notice(self._study, site, "here"))
            if data is not None and data != known:
                try:
                    notice(data, self._seal, site, "here", self._study)
                except WireError as error:
                    self._tell(f"a sign of life of site '{site}' is refused: {error}")
                    continue
                self._signs[site] = (data, now)

    def _is_silent(self, site: str) -> bool:
        if site not in self._silent:
            return False
        sign, when = self._signs.get(site, (None, 0.0))
        if sign != self._silent[site][0]:
            del self._silent[site]
            return False
        return sign is None or time.monotonic() - when > SILENT_HEARTBEATS * self._depot.heartbeat_s

    # -- words and patience

    def _say(self, what: str, text: str) -> None:
        said = Notice(PROTOCOL, what, self._study, HUB, text, self._run)  # type: ignore[arg-type]
        self._depot.put(hub_notice(self._study, what), sealed(said, self._seal))

    def _patiently(self, doing: str, call: Callable[[], _T]) -> _T:
        return _patiently(self._tell, doing, call)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("hub: %s", what)


# ------------------------------------------------------------------------------------------------ both


def newest_study(depot: Depot, seal: Seal) -> tuple[str, str]:
    """Return digest and text of the study that the hub offered last, waiting for one: what a site's people may agree to."""
    told: set[str] = set()

    def tell(what: str) -> None:
        if what not in told:
            told.add(what)
            log.warning(what)

    while True:
        data = _patiently(tell, "asks for the study", lambda: depot.get(NEWEST_STUDY))
        if data is not None:
            found = notice(data, seal, HUB, "study", None)
            return found.study, found.text
        depot.wait(1.0)


def _study_text(depot: Depot, seal: Seal, study: str, patiently: Callable[..., bytes | None]) -> str:
    while True:
        data = patiently("asks for the study", lambda: depot.get(hub_notice(study, "study")))
        if data is not None:
            return notice(data, seal, HUB, "study", study).text
        depot.wait(1.0)


def _patiently(
    tell: Callable[[str], None],
    doing: str,
    call: Callable[[], _T],
    give_up: Callable[[], None] = lambda: None,
) -> _T:
    pause = FIRST_PAUSE_S
    while True:
        give_up()
        try:
            return call()
        except (Unreachable, OSError) as error:
            pause = _paused(tell, pause, error, doing)


# What a full disk says, and a disk quota: it passes once room is made. Any other error of one's own disk does not.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def _paused(tell: Callable[[str], None], pause: float, error: Exception, doing: str) -> float:
    if isinstance(error, OSError):
        if error.errno not in _NO_ROOM:
            raise ExchangeError(
                f"{doing}: its own disk (the run folder) failed: {error.strerror or type(error).__name__}"
            ) from None
        tell(f"{doing}: its own disk (the run folder) is full; it goes on when there is room")
    else:
        tell(f"{doing}: {error}; trying again")
    time.sleep(pause)
    return min(pause * 1.7, LONGEST_PAUSE_S)


def _locked(path: Path, who: str) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ExchangeError(
            f"{who} already runs with this folder: another process holds its exchange/{path.name}, and only one may. The run's "
            f"status.json says what that one does; to run here instead, stop it first"
        ) from None
    return file


def _kept(path: Path, text: str) -> str:
    """Return what a small file says, after writing `text` there if it is missing and there is any."""
    if path.exists() and (found := path.read_text()):
        return found
    if text:
        aside = path.with_suffix(".writing")
        aside.write_text(text)
        aside.replace(path)
    return text
