"""The hub's side of an exchange over an object store; see `_protocol.py` for what is stored where."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from medfed.errors import ForgedError, WireError
from medfed.exchange._chunks import download, split_chunks
from medfed.exchange._exchange import NOTHING_MERGED, ReceivedUpdate
from medfed.exchange._late_updates import LateUpdates
from medfed.exchange._mailbox import HubMailbox
from medfed.exchange._manifest import encode_sealed
from medfed.exchange._object_store import (
    AdmitsSites,
    LimitsSites,
    MissingObject,
    ObjectStore,
    Parts,
    Unreachable,
    chunk_name,
)
from medfed.exchange._offers import offer
from medfed.exchange._partial_arrivals import PartialArrivals
from medfed.exchange._presence import HubPresence
from medfed.exchange._protocol import (
    CHECK_OFFERS_S,
    CHECK_STORE_S,
    MAX_BACKOFF_S,
    Backoff,
    Retry,
    WarnOnce,
    acquire_lock,
    log,
    read_or_create,
)
from medfed.exchange._site_answers import SiteAnswers
from medfed.exchange._site_heartbeats import SiteHeartbeats
from medfed.exchange._study_store import StudyStore
from medfed.exchange._waiting import SitesAwaited
from medfed.files import utc_time
from medfed.wire import encoding
from medfed.wire.messages import ReceivedMessage
from medfed.wire.signing import HUB, Seal
from medfed.wire.update import GlobalModel

# An update may hold a few tensors for each of the model's (SCAFFOLD, a difference in float64). One that is
# larger than this many models, plus the extra bytes, is refused before it fills the hub's disk.
MAX_UPDATE_IN_MODELS = 8
EXTRA_UPDATE_BYTES = 16 << 20

# How often one model is published again for sites that lack some of it, and how long after the last time.
MAX_REPEATS, REPEAT_S = 5, 10.0


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
        # What the store must hold while the hub waits, and when that is looked after next (time.monotonic).
        self._sealed = self._sealed_study = b""
        self._study_text = ""
        self._offered_to: tuple[str, ...] = ()
        self._next_check = self._next_offer = self._next_repeat = 0.0
        self._repeats: dict[int, int] = {}  # of the current round's model, for sites that lack some of it
        self._heartbeats = heard = SiteHeartbeats(self._objects, self._warn)
        # Asked for the sites that are admitted to the study while it runs.
        self._admitted: Callable[[], Collection[str]] = lambda: ()
        self._partial = PartialArrivals(store, self._warn)
        self._answers = SiteAnswers(self._objects, self._run, self._spool, self._warn, self._partial, heard)
        note_early = self._answers.early.add
        self._late = LateUpdates(self._objects, self._run, folder / "models", self._warn, note_early)
        # Sites whose heartbeats are read besides those of the sites being collected, for a display.
        self.monitored_sites: tuple[str, ...] = ()
        # The sites being waited for, what for, and until when (time.monotonic), for a display.
        self.awaited = ""
        # What is awaited in other words than `awaited`, where rounds are no rounds of training.
        self.awaited_as = ""
        self._told = SitesAwaited(log.warning)
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
            if self._retry("publishes", lambda: self._store.get(announced)) == sealed:
                break
            stored.clear()  # the store was lost meanwhile, and the chunks with it
        if model.asynchronous:
            self._late.keep_model(model)
        self._retry("clears", lambda: self._clear(model))
        if model is not self._current:
            self._next_repeat = time.monotonic() + self._store.settle_s
        self._current, self._sealed = model, sealed
        self._answers.current = model
        self._answers.max_update_bytes = most = MAX_UPDATE_IN_MODELS * manifest.bytes + EXTRA_UPDATE_BYTES
        if isinstance(self._store, LimitsSites):
            # Two rounds: the last update stays until the next round's has been merged.
            for deleted in self._retry("limits", partial(self._store.limit_sites, 2 * most)):
                self._warn(deleted, refused=True)
        return manifest.bytes

    def _clear(self, model: GlobalModel) -> None:
        """Delete what nobody needs once this model is published."""
        if model.asynchronous:  # sites may still send for earlier rounds, and fetch the model before this one
            self._store.delete_rounds(self._study, model.round - 1, updates=False)
        else:
            self._store.delete_rounds(self._study, model.round)
        self._late.clear()
        self._answers.forget_files()

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
        lacking = self._heartbeats.lacking(self._current.round)
        if self._is_stored() and not self._may_repeat(lacking):
            if step := self._mailbox.deliver_lost(self._current.round + 1):
                self._warn(f"its messages for step '{step}' are no longer there; it sends them again")
            return
        why = f"{lacking} finds no whole model" if lacking else "what it published is no longer there"
        self._warn(f"{why}; it publishes round {self._current.round} again")
        if self._study_text:
            self.advertise_study(self._study_text, self._offered_to)
        self.publish(self._current)
        self._mailbox.deliver_again()

    def _is_stored(self) -> bool:
        """Return whether the store holds what this hub published last, and nothing older in its place."""
        current = self._objects.get_hub_object("current")
        if current != self._sealed:
            return current is not None and self._is_newer(current)
        return not self._study_text or self._objects.get_hub_object("study") == self._sealed_study

    def _is_newer(self, current: bytes) -> bool:
        """Return whether a hub that was started later has gone on: this one will notice, and stop."""
        assert self._current is not None
        try:
            manifest = self._objects.open_manifest(current, HUB)
        except WireError:
            return False
        return manifest.run == self._run and manifest.round > self._current.round

    def _may_repeat(self, lacking: str) -> bool:
        """Return whether a model is published again for a site that says that it lacks some of it."""
        assert self._current is not None
        now, repeats = time.monotonic(), self._repeats.get(self._current.round, 0)
        if not lacking or now < self._next_repeat or repeats >= MAX_REPEATS:
            return False
        self._next_repeat = now + REPEAT_S + self._store.settle_s
        self._repeats = {self._current.round: repeats + 1}
        return True

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
                    received = self._answers.receive(round, site, start)
                    if received is None:
                        if self._answers.prefetch(round, site):
                            last_progress = time.monotonic()
                        continue
                    pending.remove(site)
                    self.pending_sites = tuple(pending)
                    answers += 1
                    self._heartbeats.answered(site)
                    yield received
                backoff.reset()
                self._heartbeats.read({*sites, *self.monitored_sites})
                self._answers.look_for_return()
                self._tell_waiting()
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

    def collect_async(
        self,
        round: int,
        sites: Sequence[str],
        deadline_s: float | None,
        count: int,
        merged: Mapping[str, int] = NOTHING_MERGED,
    ) -> Iterator[ReceivedUpdate]:
        try:
            yield from self._collect_async(round, sites, deadline_s, count, merged)
        finally:
            self.pending_sites, self.deadline = (), None

    def _collect_async(
        self,
        round: int,
        sites: Sequence[str],
        deadline_s: float | None,
        count: int,
        merged: Mapping[str, int],
    ) -> Iterator[ReceivedUpdate]:
        start, backoff = time.monotonic(), Backoff(self._warn)
        answered: set[str] = set()
        updates, self.awaited = 0, "next update"
        self.deadline = None if deadline_s is None else start + deadline_s
        while updates < count and not answered.issuperset(sites):
            self.pending_sites = tuple(sorted({*sites} - answered))
            found = False
            try:
                self._restore_lost()
                for site in sorted(sites):
                    received = self._receive_late(round, site, start, merged.get(site, 0), site in answered)
                    if received is None:
                        continue
                    found = True
                    answered.add(site)
                    updates += received.update is not None
                    yield received
                    if updates >= count:
                        return
                backoff.reset()
                self._heartbeats.read({*sites, *self.monitored_sites})
                self._answers.look_for_return()
                self._tell_waiting()
            except (Unreachable, OSError) as error:
                backoff.wait(error, "collects")
            elapsed = time.monotonic() - start
            if deadline_s is not None and elapsed >= deadline_s:
                return
            if not found:
                remaining = MAX_BACKOFF_S if deadline_s is None else deadline_s - elapsed
                self._store.wait(max(0.01, min(remaining, MAX_BACKOFF_S, elapsed)))

    def _receive_late(
        self, round: int, site: str, start: float, merged: int, answered: bool
    ) -> ReceivedUpdate | None:
        """Return a site's oldest new update up to a round, or that it stopped if it has not `answered`."""
        number = self._late.next_of(site, round, merged)
        if number is None:
            return None if answered else self._answers.absence(round, site)
        received = self._answers.receive(number, site, start, lambda: self._late.weights_of(number - 1))
        if received is None:  # some of it may still arrive
            return None if answered else self._answers.absence(round, site)
        self._late.collected(site, number)
        return received

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
        self._sealed_study = self._retry("advertises the study", put)
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
                    if message is None and (absence := self._answers.absence(round, site)) is not None:
                        message = ReceivedMessage(site, error=absence.error)
                    if message is not None:
                        pending.remove(site)
                        yield message
                backoff.reset()
                self._heartbeats.read(sites)
                self._tell_waiting()
            except (Unreachable, OSError) as error:
                backoff.wait(error, "collects messages")
            elapsed = time.monotonic() - start
            if deadline_s is not None and elapsed >= deadline_s:
                return
            remaining = MAX_BACKOFF_S if deadline_s is None else deadline_s - elapsed
            self._store.wait(max(0.01, min(remaining, MAX_BACKOFF_S, elapsed)))

    def _tell_waiting(self) -> None:
        """Log, once for each wait that takes long, which site is awaited, what for and since when."""
        what = self.awaited_as or self.awaited
        self._told.look(self.pending_sites, what, self._heartbeats.ages(), time.time())

    # -- the store and the sites' heartbeats

    def used_bytes(self) -> dict[str, int]:
        """Return how many bytes each site has in the store, where the store counts them."""
        return self._store.used_bytes() if isinstance(self._store, LimitsSites) else {}

    def heartbeat_ages(self) -> dict[str, float]:
        """Return for each site that has sent a heartbeat how many seconds ago the last new one was seen."""
        return self._heartbeats.ages()

    def stopped_sites(self) -> dict[str, str]:
        """Return why each site that stopped and has not been started again since did so."""
        return dict(self._answers.reasons)

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
        stopped, backoff = (
            {site for site in sites if self._answers.stopped.get(site) == round},
            Backoff(self._warn),
        )
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
                    if any(self._answers.drop_out(round, site) is None for site in stopped):
                        return True
                    backoff.reset()
                except (Unreachable, OSError) as error:
                    backoff.wait(error, "waits for a site to come back")
                self._store.wait(MAX_BACKOFF_S)
            return False
        finally:
            self.pending_sites, self.deadline = (), None
