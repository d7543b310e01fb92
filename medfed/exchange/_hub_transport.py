"""The hub's side of an exchange over an object store; see `_protocol.py` for what is stored where."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from medfed.errors import ForgedError, MedfedError, SiteError, UpdateError, WireError
from medfed.exchange._chunks import download, prefetch, split_chunks
from medfed.exchange._drop_out import received_reason
from medfed.exchange._exchange import ReceivedUpdate, early_update
from medfed.exchange._mailbox import HubMailbox
from medfed.exchange._manifest import Manifest, encode_sealed
from medfed.exchange._object_store import (
    AdmitsSites,
    LimitsSites,
    MissingObject,
    ObjectStore,
    Parts,
    Unreachable,
    chunk_name,
    manifest_name,
)
from medfed.exchange._offers import offer
from medfed.exchange._partial_arrivals import NotWhole, PartialArrivals, not_whole
from medfed.exchange._presence import HubPresence
from medfed.exchange._protocol import (
    CHECK_OFFERS_S,
    CHECK_STORE_S,
    MAX_ATTEMPTS,
    MAX_BACKOFF_S,
    MIN_BACKOFF_S,
    Backoff,
    Retry,
    WarnOnce,
    acquire_lock,
    read_or_create,
)
from medfed.exchange._site_heartbeats import SiteHeartbeats
from medfed.exchange._study_store import StudyStore
from medfed.files import utc_time
from medfed.wire import encoding
from medfed.wire.messages import ReceivedMessage
from medfed.wire.signing import HUB, Seal
from medfed.wire.update import GlobalModel

# An update may hold a few tensors for each of the model's (SCAFFOLD, a difference in float64). One that is
# larger than this many models, plus the extra bytes, is refused before it fills the hub's disk.
MAX_UPDATE_IN_MODELS = 8
EXTRA_UPDATE_BYTES = 16 << 20


class HubTransport:
    """The hub's side of an exchange over an object store."""

    def __init__(self, store: ObjectStore, seal: Seal, study_digest: str, folder: Path) -> None:
        self._store, self._study = store, study_digest
        self._objects = StudyStore(store, seal, study_digest, HUB)
        folder = folder / "exchange"
        self._spool = folder / "spool"
        self._lock = acquire_lock(folder / "lock", "the hub")
        is_new_run = not (folder / "run").exists()
        self._run = read_or_create(folder / "run", uuid.uuid4().hex)
        self._mailbox = HubMailbox(self._objects, self._run, folder / "letters")
        self._warn = WarnOnce("hub")
        self._presence = HubPresence(self._objects, self._run)
        self._retry = Retry(self._warn, self._presence.raise_if_replaced)
        self._current: GlobalModel | None = None
        self._max_update_bytes = 0
        # What the store must hold while the hub waits, and when that is looked after next (time.monotonic).
        self._sealed = b""
        self._study_text = ""
        self._offered_to: tuple[str, ...] = ()
        self._next_check = self._next_offer = 0.0
        # Per site: the last announced upload, and its verified manifest.
        self._announced: dict[str, tuple[bytes, Manifest | None]] = {}
        # Updates that were sent before their round began, refused then and when their round comes.
        self._early: dict[tuple[str, int], Manifest] = {}
        self._heartbeats = SiteHeartbeats(self._objects, self._warn)
        # Asked for the sites that are admitted to the study while it runs.
        self._admitted: Callable[[], Collection[str]] = lambda: ()
        self._partial = PartialArrivals(store, self._warn)
        # The round in which a site was last found to have dropped out.
        self._stopped: dict[str, int] = {}
        # Sites whose heartbeats are read besides those of the sites being collected, for a display.
        self.monitored_sites: tuple[str, ...] = ()
        # The sites being waited for, what for, and until when (time.monotonic), for a display.
        self.awaited = ""
        self.pending_sites: tuple[str, ...] = ()
        self.deadline: float | None = None
        try:
            self._retry("opens", self._presence.claim)
        except BaseException:
            self.disconnect()
            raise
        if is_new_run:
            # What an earlier run of the same study left must not be taken for an answer to this one.
            self._retry("clears", lambda: store.delete_study(study_digest))
            shutil.rmtree(folder / "letters", ignore_errors=True)
            # The study's state went with it.
            self._retry("opens", self._presence.claim)
        self._presence.start()

    def on_refused(self, write: Callable[[str], None]) -> None:
        """Have `write` called, once per reason, with what the hub or its broker refused outside a round."""
        self._warn.on_refused = write

    # -- models and updates

    def publish(self, model: GlobalModel, ensure_saved: Callable[[], None] = lambda: None) -> int:
        prefix = self._objects.global_prefix(model.round)
        stored: set[str] = set()
        manifest = self._objects.describe(self._run, model.round, encoding.global_pieces(model))
        sealed = encode_sealed(manifest, self._objects.seal)

        def chunks() -> Iterator[tuple[str, Parts]]:
            pieces = split_chunks(encoding.global_pieces(model), manifest.chunk_bytes)
            for index, (chunk, digest) in enumerate(zip(pieces, manifest.chunks, strict=True)):
                name = chunk_name(prefix, index, digest)
                if name not in stored:
                    yield name, chunk

        announced, current = self._objects.hub_object("announced"), self._objects.hub_object("current")
        while True:
            self._retry("publishes", lambda: self._store.put(announced, sealed))
            self._retry("publishes", lambda: self._store.put_many(chunks(), stored.add))
            ensure_saved()
            self._retry("publishes", lambda: self._store.put(current, sealed))
            if self._retry("publishes", lambda: self._store.get(announced)) is not None:
                break
            stored.clear()  # the store was lost meanwhile, and the chunks with it
        self._retry("clears", lambda: self._store.delete_rounds(self._study, model.round))
        self._current, self._sealed = model, sealed
        self._max_update_bytes = MAX_UPDATE_IN_MODELS * manifest.bytes + EXTRA_UPDATE_BYTES
        if isinstance(self._store, LimitsSites):
            # Two rounds: the last update stays until the next round's has been merged.
            for deleted in self._retry(
                "limits", partial(self._store.limit_sites, 2 * self._max_update_bytes)
            ):
                self._warn(deleted, refused=True)
        return manifest.bytes

    def newest_published(self, after: int) -> GlobalModel | None:
        data = self._retry("looks for its models", lambda: self._objects.get_hub_object("current"))
        if data is None:
            return None
        path = self._spool / "published.global"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            manifest = self._objects.open_manifest(data, HUB)
            if manifest.run != self._run or manifest.round <= after:
                return None
            prefix = self._objects.global_prefix(manifest.round)
            self._retry("fetches its model", lambda: download(self._store, manifest, prefix, path))
            model = encoding.read_global(path, self._study)
        except (WireError, MissingObject) as error:
            self._warn(f"the model that it published last cannot be read: {error}")
            return None
        # The tensors are read now: the file is overwritten by nothing, and goes.
        weights = {name: model.weights[name].clone() for name in model.weights}
        path.unlink()
        return replace(model, weights=weights)

    def _restore_lost(self) -> None:
        """Store again what the store has lost: a broker's disk was replaced, or a share was emptied.

        The sites send their own again (`SiteTransport`), so the round goes on to the same model.
        """
        self._presence.raise_if_replaced()
        if self._current is None or time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_STORE_S
        self._offer_to_admitted()
        if time.monotonic() >= self._next_offer:
            # Two hubs that put their studies on a site's list at once know nothing of each other.
            self._next_offer = time.monotonic() + CHECK_OFFERS_S
            offer(self._objects, self._offered_to)
        wanted = ("current", "study") if self._study_text else ("current",)
        if all(self._objects.get_hub_object(what) is not None for what in wanted):
            return
        self._warn(f"what it published is no longer there; it publishes round {self._current.round} again")
        if self._study_text:
            self.advertise_study(self._study_text, self._offered_to)
        self.publish(self._current)
        self._mailbox.deliver_again()

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[ReceivedUpdate]:
        try:
            yield from self._collect(round, sites, deadline_s)
        finally:
            self.pending_sites, self.deadline = (), None

    def _collect(
        self, round: int, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedUpdate]:
        start, backoff = time.monotonic(), Backoff(self._warn)
        pending, answers, last_progress = sorted(sites), 0, start
        self.deadline = None if deadline_s is None else start + deadline_s
        scores = self._current is not None and self._current.ends_training
        self.awaited = "scores" if scores else f"update of round {round}"
        while pending:
            self.pending_sites = tuple(pending)
            try:
                self._restore_lost()
                for site in list(pending):
                    received = self._receive(round, site, start)
                    if received is None:
                        if self._prefetch_update(round, site):
                            last_progress = time.monotonic()
                        continue
                    pending.remove(site)
                    self.pending_sites = tuple(pending)
                    answers += 1
                    self._heartbeats.answered(site)
                    yield received
                backoff.reset()
                self._heartbeats.read({*sites, *self.monitored_sites})
            except (Unreachable, OSError) as error:
                backoff.wait(error, "collects")
            elapsed = time.monotonic() - start
            if deadline_s is not None and elapsed >= deadline_s:
                yield from self._partial.not_whole_by_now(round, pending)
                self._heartbeats.missed_deadline(pending)
                return
            if answers and all(self._heartbeats.is_offline(site) for site in pending):
                return
            remaining = MAX_BACKOFF_S if deadline_s is None else deadline_s - elapsed
            # While an update is arriving the next look is soon, otherwise after a pause that grows
            # with the wait.
            self._store.wait(max(0.01, min(remaining, MAX_BACKOFF_S, time.monotonic() - last_progress)))

    def close(self) -> None:
        try:
            offer(self._objects, self._offered_to, withdrawn=True)
            self._presence.close(0 if self._current is None else self._current.round + 1)
        except (Unreachable, OSError) as error:
            self._warn(f"the sites could not be informed that it closes: {error}")
        self.disconnect()

    def disconnect(self) -> None:
        """Stop without a message: the sites wait until the hub comes back."""
        self._presence.stop()
        self._store.close()
        self._lock.close()

    def advertise_study(self, study_text: str, sites: Sequence[str]) -> None:
        """Store the study's text where its sites can read it before approving it, and offer it to them."""
        self._study_text, self._offered_to = study_text, tuple(sites)
        self.admit(sites)
        put = partial(self._objects.put_control, "study", study_text, self._run)
        self._retry("advertises the study", put)
        self._retry("advertises the study", lambda: offer(self._objects, sites))

    def admit(self, sites: Sequence[str]) -> None:
        """Let these sites, and no others, read and write this study, where the store has such rights."""
        if isinstance(self._store, AdmitsSites):
            self._store.admit(sites)

    # -- messages

    def send_messages(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        valid = self._retry("writes", lambda: self._mailbox.write(round, attempt, step, messages))
        for site, data in valid.items():
            self._retry("writes", partial(self._mailbox.deliver, round, attempt, step, site, data))
        return valid

    def sent_messages(self, step: str) -> tuple[tuple[int, int], Mapping[str, bytes]] | None:
        return self._mailbox.written(step)

    def collect_messages(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        try:
            yield from self._collect_messages(round, attempt, step, sites, deadline_s)
        finally:
            self.pending_sites, self.deadline = (), None

    def _collect_messages(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        start, backoff = time.monotonic(), Backoff(self._warn)
        pending = sorted(sites)
        self.deadline = None if deadline_s is None else start + deadline_s
        self.awaited = f"message '{step}' of round {round}"
        while pending:
            self.pending_sites = tuple(pending)
            try:
                self._restore_lost()
                for site in list(pending):
                    message = self._mailbox.find(round, attempt, step, site)
                    error = message.error if message is not None else None
                    # Of a share that is synchronised, half of it may be there.
                    may_be_half = isinstance(error, WireError) and not isinstance(error, ForgedError)
                    if may_be_half and self._partial.may_still_arrive((site, round, step), str(error)):
                        continue
                    if message is None and (dropped_out := self._drop_out(round, site)) is not None:
                        message = ReceivedMessage(site, error=dropped_out.error)
                    if message is not None:
                        pending.remove(site)
                        yield message
                backoff.reset()
                self._heartbeats.read(sites)
            except (Unreachable, OSError) as error:
                backoff.wait(error, "collects messages")
            elapsed = time.monotonic() - start
            if deadline_s is not None and elapsed >= deadline_s:
                return
            remaining = MAX_BACKOFF_S if deadline_s is None else deadline_s - elapsed
            self._store.wait(max(0.01, min(remaining, MAX_BACKOFF_S, elapsed)))

    # -- one site's answer

    def _receive(self, round: int, site: str, start: float) -> ReceivedUpdate | None:
        prefix = self._objects.update_prefix(site, round)
        data, size = b"", 0
        try:
            with not_whole():
                data = self._store.get(manifest_name(prefix)) or b""
                manifest = self._objects.open_manifest(data, site) if data else None
            if manifest is None:
                return self._drop_out(round, site) or self._refused_early(round, site)
            size = manifest.bytes
            self._check(manifest, round)
            if self._early.get((site, round)) == manifest:
                raise UpdateError("it was sent before the round began, so it comes from another model")
            path = self._spool_file(site)
            with not_whole():
                self._download(manifest, prefix, path)
            assert self._current is not None
            update = encoding.read_update(path, self._current.weights, self._study)
        except (Unreachable, OSError):
            raise
        except NotWhole as error:
            if self._partial.may_still_arrive((site, round, "update"), str(error), max(size, len(data))):
                return None
            named: MedfedError = WireError(f"site '{site}', round {round}: {error}")
            return ReceivedUpdate(site, None, named, max(size, len(data)))
        except MedfedError as error:
            named = type(error)(f"site '{site}', round {round}: {error}")
            return ReceivedUpdate(site, None, named, max(size, len(data)))
        return ReceivedUpdate(site, update, None, size, time.monotonic() - start)

    def _check(self, manifest: Manifest, round: int) -> None:
        if manifest.round != round or manifest.run != self._run:
            raise WireError(
                f"its manifest is for round {manifest.round} of run {manifest.run[:8]}, expected round "
                f"{round} of run {self._run[:8]}: it is a copy of an older one"
            )
        if self._max_update_bytes and manifest.bytes > self._max_update_bytes:
            raise WireError(
                f"it holds {manifest.bytes} bytes; for this model at most {self._max_update_bytes} are "
                f"accepted"
            )

    def _prefetch_update(self, round: int, site: str) -> bool:
        """Fetch the available chunks of an update that a site is sending; return whether anything was new."""
        try:
            data = self._objects.get_site_object(site, "announced")
            if data is None:
                return False
            is_new = data != self._announced.get(site, (b"", None))[0]
            if is_new:
                self._announced[site] = data, None
                self._announced[site] = data, self._objects.open_manifest(data, site)
            manifest = self._announced[site][1]
            if manifest is None:
                return False
            self._check(manifest, round)
            prefix = self._objects.update_prefix(site, round)
            return prefetch(self._store, manifest, prefix, self._spool_file(site), overwrite=True) or is_new
        except WireError:
            # It is an earlier round's. If this round's is invalid, its final manifest will say why.
            return False

    def _refused_early(self, round: int, site: str) -> ReceivedUpdate | None:
        """Return the refusal of an update that a site announced for a later round, once per announcement."""
        data, manifest = self._announced.get(site, (b"", None))
        if manifest is None or manifest.run != self._run or manifest.round <= round:
            return None
        self._announced[site] = data, None
        self._early[site, manifest.round] = manifest
        return early_update(site, round, manifest.round, manifest.bytes)

    def _spool_file(self, site: str) -> Path:
        return self._spool / f"{site}.update"

    def _download(self, manifest: Manifest, prefix: str, path: Path) -> None:
        attempts = 1 if self._store.settle_s else MAX_ATTEMPTS  # it is looked at again anyway
        for attempt in range(attempts):
            try:
                # Downloaded again even if an earlier process had completed it: nothing guarantees
                # that file's bytes.
                return download(self._store, manifest, prefix, path, overwrite=True)
            except (WireError, MissingObject) as error:
                if attempt == attempts - 1:
                    raise WireError(str(error)) from None
                time.sleep(MIN_BACKOFF_S)
        return None

    def _drop_out(self, round: int, site: str) -> ReceivedUpdate | None:
        try:
            data = self._objects.get_site_object(site, "dropped_out")
            if data is None:
                return None
            message = self._objects.open_control(data, site, "dropped_out")
        except WireError as error:
            self._warn(f"a drop-out of site '{site}' is refused: {error}", refused=True)
            return None
        if not message.text:
            return None
        self._stopped[site] = round
        return ReceivedUpdate(
            site, None, SiteError(f"site '{site}', round {round}: {received_reason(message.text)}")
        )

    def used_bytes(self) -> dict[str, int]:
        """Return how many bytes each site has in the store, where the store counts them."""
        return self._store.used_bytes() if isinstance(self._store, LimitsSites) else {}

    # -- heartbeats

    def heartbeat_ages(self) -> dict[str, float]:
        """Return for each site that has sent a heartbeat how many seconds ago the last new one was seen."""
        return self._heartbeats.ages()

    def online_sites(self) -> set[str]:
        """Return the sites whose last heartbeat is recent."""
        return self._heartbeats.online()

    # -- sites that come later, or again

    def joined_sites(self) -> set[str]:
        """Return the sites that were admitted after the study began, and have been heard of lately."""
        self._offer_to_admitted()
        admitted = {*self._admitted()}
        self._retry("looks for sites that join", lambda: self._heartbeats.read(admitted))
        return admitted & self.online_sites()

    def on_admitted(self, admitted: Callable[[], Collection[str]]) -> None:
        """Offer the study also to the sites that `admitted` returns, which is asked now and then."""
        self._admitted = admitted

    def _offer_to_admitted(self) -> None:
        new = sorted({*self._admitted()} - {*self._offered_to})
        if new:
            self.monitored_sites = (*self.monitored_sites, *new)
            self.advertise_study(self._study_text, (*self._offered_to, *new))

    def wait_for_return(self, round: int, sites: Sequence[str], max_wait_s: float, why: str) -> bool:
        stopped, backoff = {site for site in sites if self._stopped.get(site) == round}, Backoff(self._warn)
        if not stopped:
            return False
        until = time.time() + max_wait_s
        self._warn(
            f"{why}. The hub waits until {utc_time(until)} for {', '.join(sorted(stopped))} to be started "
            "again; stop it (Ctrl-C) to end the run now"
        )
        self.pending_sites, self.deadline = tuple(sorted(stopped)), time.monotonic() + max_wait_s
        self.awaited = "return"
        try:
            while time.time() < until:
                try:
                    self._restore_lost()
                    self._heartbeats.read({*sites, *self.monitored_sites})
                    if any(self._drop_out(round, site) is None for site in stopped):
                        return True
                    backoff.reset()
                except (Unreachable, OSError) as error:
                    backoff.wait(error, "waits for a site to come back")
                self._store.wait(MAX_BACKOFF_S)
            return False
        finally:
            self.pending_sites, self.deadline = (), None
