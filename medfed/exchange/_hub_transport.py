"""The hub's side of an exchange over a depot; what is written where stands in `_meeting.py`."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medfed.errors import MedfedError, SiteError, WireError
from medfed.exchange._chunks import bring, bring_ahead, cut, measured
from medfed.exchange._exchange import Arrival
from medfed.exchange._mailbox import HubBox
from medfed.exchange._manifest import PROTOCOL, Manifest, Notice, manifest, notice, sealed
from medfed.exchange._object_store import (
    Depot,
    Missing,
    Parts,
    Unreachable,
    chunk_name,
    global_prefix,
    hub_notice,
    manifest_name,
    site_notice,
    update_prefix,
)
from medfed.exchange._protocol import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    NEWEST_STUDY,
    SILENT_HEARTBEATS,
    TRIES,
    kept_text,
    locked,
    log,
    patiently,
    paused,
)
from medfed.wire import encoding as wire
from medfed.wire.messages import Delivery
from medfed.wire.signing import HUB, Seal
from medfed.wire.update import Global

# An update may hold a few tensors for each of the model's (SCAFFOLD, a difference in float64). Beyond this
# many times the model's size it is refused before it fills the hub's disk.
LARGEST_UPDATE_IN_MODELS = 8
LARGEST_UPDATE_BESIDE_BYTES = 16 << 20


_T = TypeVar("_T")


class HubMeeting:
    """The hub's side of an exchange over a depot."""

    def __init__(self, depot: Depot, seal: Seal, study: str, folder: Path) -> None:
        self._depot, self._seal, self._study = depot, seal, study
        self._folder = folder / "exchange"
        self._spool = self._folder / "spool"
        self._lock = locked(self._folder / "lock", "the hub")
        fresh = not (self._folder / "run").exists()
        self._run = kept_text(self._folder / "run", uuid.uuid4().hex)
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

        def chunks() -> Iterator[tuple[str, Parts]]:
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
                pause = paused(self._tell, pause, error, "collects")
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
                pause = paused(self._tell, pause, error, "gathers")
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
        """Fetch what is there already of an update that a site is sending; return whether
        there was anything new.
        """
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
                # Brought again even where an earlier process had it whole: nobody vouches for
                # that file's bytes.
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
        return patiently(self._tell, doing, call)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("hub: %s", what)
