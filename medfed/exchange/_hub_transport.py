"""The hub's side of an exchange over a store; what is written where stands in `_meeting.py`."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medfed.errors import MedfedError, SiteError, WireError
from medfed.exchange._chunks import download, measured, prefetch, split_chunks
from medfed.exchange._exchange import ReceivedUpdate
from medfed.exchange._mailbox import HubMailbox
from medfed.exchange._manifest import PROTOCOL, ControlMessage, Manifest, encode_sealed, manifest, notice
from medfed.exchange._object_store import (
    MissingObject,
    ObjectStore,
    Parts,
    Unreachable,
    chunk_name,
    global_prefix,
    hub_control_name,
    manifest_name,
    site_control_name,
    update_prefix,
)
from medfed.exchange._protocol import (
    ADVERTISED_STUDY,
    MAX_ATTEMPTS,
    MAX_BACKOFF_S,
    MIN_BACKOFF_S,
    SILENT_AFTER_HEARTBEATS,
    acquire_lock,
    backoff,
    log,
    read_or_create,
    retry,
)
from medfed.wire import encoding as wire
from medfed.wire.messages import ReceivedMessage
from medfed.wire.signing import HUB, Seal
from medfed.wire.update import GlobalModel

# An update may hold a few tensors for each of the model's (SCAFFOLD, a difference in float64). Beyond this
# many times the model's size it is refused before it fills the hub's disk.
MAX_UPDATE_IN_MODELS = 8
EXTRA_UPDATE_BYTES = 16 << 20


_T = TypeVar("_T")


class HubTransport:
    """The hub's side of an exchange over a store."""

    def __init__(self, store: ObjectStore, seal: Seal, study: str, folder: Path) -> None:
        self._store, self._seal, self._study = store, seal, study
        self._folder = folder / "exchange"
        self._spool = self._folder / "spool"
        self._lock = acquire_lock(self._folder / "lock", "the hub")
        fresh = not (self._folder / "run").exists()
        self._run = read_or_create(self._folder / "run", uuid.uuid4().hex)
        self._mailbox = HubMailbox(store, seal, study, self._run, self._folder / "letters")
        self._told: set[str] = set()
        self._current: GlobalModel | None = None
        self._largest = 0
        # What each site said last of an update that is coming, and what of it is believed.
        self._announced: dict[str, tuple[bytes, Manifest | None]] = {}
        self._signs: dict[str, tuple[bytes | None, float]] = {}
        self._silent: dict[str, tuple[bytes | None, float]] = {}
        # Whose signs of life are looked for beside those of the sites that are asked, for a display.
        self.monitored_sites: tuple[str, ...] = ()
        # Who is awaited at the moment, and until when (of time.monotonic), for a display.
        self.pending_sites: tuple[str, ...] = ()
        self.deadline: float | None = None
        if fresh:
            # What an earlier run of the same study left can be no answer to this one.
            self._retry("clears", lambda: store.delete_study(study))
            shutil.rmtree(self._folder / "letters", ignore_errors=True)
        self._retry("opens", lambda: self._say("state", "open"))

    def publish(self, sent: GlobalModel, kept: Callable[[], None] = lambda: None) -> int:
        prefix = global_prefix(self._study, sent.round)
        stored: set[str] = set()
        size, digests = measured(wire.global_pieces(sent), self._store.chunk_bytes)
        said = Manifest(
            protocol=PROTOCOL,
            what="global",
            study=self._study,
            run=self._run,
            party=HUB,
            round=sent.round,
            bytes=size,
            chunk_bytes=self._store.chunk_bytes,
            chunks=digests,
        )
        data = encode_sealed(said, self._seal)

        def chunks() -> Iterator[tuple[str, Parts]]:
            pieces = split_chunks(wire.global_pieces(sent), self._store.chunk_bytes)
            for index, (chunk, digest) in enumerate(zip(pieces, digests, strict=True)):
                name = chunk_name(prefix, index, digest)
                if name not in stored:
                    yield name, chunk

        self._retry("publishes", lambda: self._store.put(hub_control_name(self._study, "coming"), data))
        self._retry("publishes", lambda: self._store.put_many(chunks(), stored.add))
        kept()
        self._retry("publishes", lambda: self._store.put(hub_control_name(self._study, "now"), data))
        self._retry("clears", lambda: self._store.delete_rounds(self._study, sent.round))
        self._current = sent
        self._largest = MAX_UPDATE_IN_MODELS * size + EXTRA_UPDATE_BYTES
        return size

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[ReceivedUpdate]:
        try:
            yield from self._collected(round, sites, deadline_s)
        finally:
            self.pending_sites, self.deadline = (), None

    def _collected(
        self, round: int, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedUpdate]:
        start, pause = time.monotonic(), MIN_BACKOFF_S
        awaited, heard, moved = sorted(sites), 0, start
        self.deadline = None if deadline_s is None else start + deadline_s
        while awaited:
            self.pending_sites = tuple(awaited)
            try:
                for site in list(awaited):
                    arrival = self._look(round, site, start)
                    if arrival is None:
                        if self._prefetch(round, site):
                            moved = time.monotonic()
                    else:
                        awaited.remove(site)
                        self.pending_sites = tuple(awaited)
                        heard += 1
                        self._silent.pop(site, None)
                        yield arrival
                pause = MIN_BACKOFF_S
                self._listen({*sites, *self.monitored_sites})
            except (Unreachable, OSError) as error:
                pause = backoff(self._tell, pause, error, "collects")
            passed = time.monotonic() - start
            if deadline_s is not None and passed >= deadline_s:
                for site in awaited:
                    # Silent since: it is not awaited again until it gives a sign of life.
                    self._silent[site] = self._signs.get(site, (None, start))
                return
            if heard and all(self._is_silent(site) for site in awaited):
                return
            left = MAX_BACKOFF_S if deadline_s is None else deadline_s - passed
            # While an update is coming the next look is soon, else a while that grows with what was waited.
            self._store.wait(max(0.01, min(left, MAX_BACKOFF_S, time.monotonic() - moved)))

    def close(self) -> None:
        try:
            self._say("state", "closed")
        except (Unreachable, OSError) as error:
            self._tell(f"the sites could not be told that it closes: {error}")
        self.disconnect()

    def disconnect(self) -> None:
        """Stop without a word: the sites wait until the hub comes back."""
        self._store.close()
        self._lock.close()

    def advertise_study(self, study_text: str) -> None:
        """Let every site fetch the study file, so that its people can read what they agree to."""
        said = encode_sealed(
            ControlMessage(PROTOCOL, "study", self._study, HUB, study_text, self._run), self._seal
        )
        for where in (hub_control_name(self._study, "study"), ADVERTISED_STUDY):
            self._retry("offers the study", lambda where=where: self._store.put(where, said))  # type: ignore[misc]

    def heartbeat_ages(self) -> dict[str, float]:
        """Return for each site that was awaited how many seconds ago it gave a sign of life that was new."""
        now = time.monotonic()
        return {site: now - when for site, (data, when) in self._signs.items() if data is not None}

    def online_sites(self) -> set[str]:
        """Return the sites that gave a sign of life a moment ago."""
        recent = SILENT_AFTER_HEARTBEATS * self._store.heartbeat_s
        return {site for site, ago in self.heartbeat_ages().items() if ago <= recent}

    # -- messages

    def send_messages(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        stands = self._retry("writes", lambda: self._mailbox.keep(round, attempt, step, messages))
        for site, data in stands.items():
            self._retry(
                "writes",
                lambda site=site, data=data: self._mailbox.deliver(round, attempt, step, site, data),  # type: ignore[misc]
            )
        return stands

    def sent_messages(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        return self._mailbox.kept(step)

    def collect_messages(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        start, pause = time.monotonic(), MIN_BACKOFF_S
        awaited = sorted(sites)
        while awaited:
            try:
                for site in list(awaited):
                    found = self._mailbox.find(round, attempt, step, site) or self._gone(round, site)
                    if found is not None:
                        awaited.remove(site)
                        yield found
                pause = MIN_BACKOFF_S
                self._listen(sites)
            except (Unreachable, OSError) as error:
                pause = backoff(self._tell, pause, error, "gathers")
            passed = time.monotonic() - start
            if deadline_s is not None and passed >= deadline_s:
                return
            left = MAX_BACKOFF_S if deadline_s is None else deadline_s - passed
            self._store.wait(max(0.01, min(left, MAX_BACKOFF_S, passed)))

    def _gone(self, round: int, site: str) -> ReceivedMessage | None:
        found = self._withdrawn(round, site)
        return None if found is None else ReceivedMessage(site, error=found.error)

    # -- one site's answer

    def _look(self, round: int, site: str, start: float) -> ReceivedUpdate | None:
        prefix = update_prefix(self._study, site, round)
        data = self._store.get(manifest_name(prefix))
        if not data:
            return self._withdrawn(round, site)
        size = 0
        try:
            found = manifest(data, self._seal, site, "update", self._study)
            size = found.bytes
            self._check(found, round)
            path = self._spooled(site)
            self._download(found, prefix, path)
            assert self._current is not None
            update = wire.read_update(path, self._current.weights, self._study)
        except (Unreachable, OSError):
            raise
        except MedfedError as error:
            return ReceivedUpdate(
                site, None, type(error)(f"site '{site}', round {round}: {error}"), max(size, len(data))
            )
        return ReceivedUpdate(site, update, None, size, time.monotonic() - start)

    def _check(self, found: Manifest, round: int) -> None:
        if found.round != round or found.run != self._run:
            raise WireError(
                f"its manifest is for round {found.round} of run {found.run[:8]}, expected round {round} of run "
                f"{self._run[:8]}: it is a copy of an older one"
            )
        if self._largest and found.bytes > self._largest:
            raise WireError(f"it holds {found.bytes} bytes; for this model at most {self._largest} are taken")

    def _prefetch(self, round: int, site: str) -> bool:
        """Fetch what is there already of an update that a site is sending; return whether
        there was anything new.
        """
        data = self._store.get(site_control_name(self._study, site, "coming"))
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
        return prefetch(self._store, found, prefix, self._spooled(site), write_over=True) or new

    def _spooled(self, site: str) -> Path:
        return self._spool / f"{site}.update"

    def _download(self, found: Manifest, prefix: str, path: Path) -> None:
        for attempt in range(MAX_ATTEMPTS):
            try:
                # Brought again even where an earlier process had it whole: nobody vouches for
                # that file's bytes.
                return download(self._store, found, prefix, path, write_over=True)
            except (WireError, MissingObject) as error:
                if attempt == MAX_ATTEMPTS - 1:
                    raise WireError(str(error)) from None
                time.sleep(MIN_BACKOFF_S)
        return None

    def _withdrawn(self, round: int, site: str) -> ReceivedUpdate | None:
        data = self._store.get(site_control_name(self._study, site, "withdrawn"))
        if data is None:
            return None
        try:
            said = notice(data, self._seal, site, "withdrawn", self._study)
        except WireError as error:
            self._tell(f"a withdrawal of site '{site}' is refused: {error}")
            return None
        return (
            ReceivedUpdate(site, None, SiteError(f"site '{site}', round {round}: {said.text}"))
            if said.text
            else None
        )

    # -- who is there

    def _listen(self, sites: Iterable[str]) -> None:
        now = time.monotonic()
        for site in sites:
            known, _ = self._signs.get(site, (None, 0.0))
            data = self._store.get(site_control_name(self._study, site, "here"))
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
        return sign is None or time.monotonic() - when > SILENT_AFTER_HEARTBEATS * self._store.heartbeat_s

    # -- words and patience

    def _say(self, what: str, text: str) -> None:
        said = ControlMessage(PROTOCOL, what, self._study, HUB, text, self._run)  # type: ignore[arg-type]
        self._store.put(hub_control_name(self._study, what), encode_sealed(said, self._seal))

    def _retry(self, doing: str, call: Callable[[], _T]) -> _T:
        return retry(self._tell, doing, call)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("hub: %s", what)
