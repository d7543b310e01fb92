"""A site's side of an exchange over an object store; see `_protocol.py` for what is stored where."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from medfed.errors import EndedError, ExchangeError, WireError
from medfed.exchange._chunks import (
    OutgoingUpdate,
    combined_digest,
    split_chunks,
)
from medfed.exchange._drop_out import DropOut
from medfed.exchange._exchange import Transmission
from medfed.exchange._mailbox import SiteMailbox
from medfed.exchange._manifest import ControlMessage, Manifest, encode_sealed, validate_party_name
from medfed.exchange._object_store import MissingObject, ObjectStore, Unreachable, UnsafeObject, manifest_name
from medfed.exchange._own_folder import damaged_model, older_folder
from medfed.exchange._presence import CLOSED, SitePresence
from medfed.exchange._protocol import (
    CHECK_STORE_S,
    MAX_BACKOFF_S,
    MIN_BACKOFF_S,
    Backoff,
    Retry,
    WarnOnce,
    acquire_lock,
    log,
    read_or_create,
    wait_for_object,
)
from medfed.exchange._received_models import ReceivedModels
from medfed.exchange._study_store import StudyStore
from medfed.exchange._waiting import WaitReporter
from medfed.wire import encoding
from medfed.wire.messages import Message, open_message
from medfed.wire.signing import HUB, Seal, Unsigned
from medfed.wire.update import GlobalModel, Update

# How long a site that stops tries to send that it drops out.
DROP_OUT_TIMEOUT_S = 10.0

# How long a site waits for the final model once it has seen that the study is closed, where a share that is
# synchronised may show the one before the other.
MAX_SETTLE_CLOSED_S = 60.0

_T = TypeVar("_T")


class SiteTransport:
    """A site's side of an exchange over an object store."""

    # The hub's state is read at a merge; reading it earlier would cost a message per training step.
    closed = False

    # After how long a wait for the hub ends, and a wait for a hub that shows no sign of life; None never.
    max_wait_s: float | None = None
    max_silence_s: float | None = None

    # Whoever trains is in the study to which the hospital agreed, not in what the hub or the store says.
    parties: tuple[str, ...] = ()

    def __init__(self, store: ObjectStore, seal: Seal, study_digest: str, site: str, folder: Path) -> None:
        self._store, self._study, self._site = store, study_digest, validate_party_name(site)
        self._objects = StudyStore(store, seal, study_digest, site)
        self.signed = not isinstance(seal, Unsigned)
        self._folder = folder / "exchange"
        self._outbox = self._folder / "outbox"
        self._models = ReceivedModels(self._objects, self._folder / "inbox")
        self._lock = acquire_lock(self._folder / "lock", f"site '{site}'")
        session = read_or_create(self._folder / "session", uuid.uuid4().hex)
        self._presence = SitePresence(self._objects, session)
        self._mailbox = SiteMailbox(self._objects, self._folder / "letters")
        self._warn = WarnOnce(f"site '{site}'")
        self._retry = Retry(self._warn, self._presence.raise_if_replaced, lambda: self.max_silence_s)
        # The hub's last manifests and control messages, as opened: a signature is verified only once.
        self._opened: dict[str, tuple[bytes, Manifest | ControlMessage]] = {}
        # The last measured update and its manifest, so that `transmission` describes exactly
        # what `send` sends.
        self._measured: tuple[Update, Manifest] | None = None
        # When the hub's state was last seen to change (time.monotonic).
        self._hub_seen = time.monotonic()
        # What it waits for from the hub, and since when (seconds since 1970); `awaited_as` are other words.
        self.awaited: tuple[str, float] | None = None
        self.awaited_as = ""
        self._told = WaitReporter(site, log.warning)
        self._age_checked = False  # whether it has compared its folder with what it sent
        self._sent_at_start: bytes | None = None  # what this site had announced last when it was started
        # When it looks next whether the store still holds its messages (time.monotonic).
        self._next_check = 0.0
        # Called once per reason for which something in the hub's name was refused.
        self.on_refused: Callable[[str], None] = lambda reason: None
        # Called once per reason for which the broker refused this site.
        self.on_broker_refused: Callable[[str], None] = lambda reason: None
        self._warn.on_refused = lambda reason: self.on_broker_refused(reason)
        # Whether the hub merges late updates, too, as its newest model says.
        self._asynchronous = False
        # The file of the model that was fetched last.
        self.model_path: Path | None = None
        try:
            self._retry("joins", self._join)
        except BaseException:
            self.close()
            raise
        self._presence.start()

    @property
    def last_contact_s(self) -> float | None:
        """When the other side was last reached (seconds since 1970)."""
        return self._presence.last_contact_s

    # -- models and updates

    def fetch(self, site: str, round: int) -> GlobalModel:
        return self._poll(
            "fetch", "model", lambda: self._fetch_once(round), lambda: self._prefetch_model(round)
        )

    def transmission(self, update: Update) -> Transmission:
        manifest = self._measure(update)
        return Transmission(
            f"hub, {self._store.description}", manifest.bytes, combined_digest(manifest.chunks).hex()
        )

    def send(self, update: Update) -> None:
        self._presence.raise_if_replaced()
        outgoing = OutgoingUpdate(self._outbox, update.round)
        for old in self._sent_before(update.round)[:-1]:
            OutgoingUpdate(self._outbox, old).remove()
        if outgoing.delivered:
            return
        try:
            self._retry("sends", lambda: self._write_and_deliver(outgoing, update))
        finally:
            # A late update may still be being written to the file, which the next update overwrites.
            outgoing.wait_written()
            self._measured = None

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        deadline = time.monotonic() + DROP_OUT_TIMEOUT_S
        while True:
            try:
                return self._presence.send("dropped_out", DropOut(reason))
            except (Unreachable, OSError):
                if time.monotonic() > deadline:
                    return None  # the round's deadline will tell the hub
                time.sleep(MIN_BACKOFF_S)

    def study_text(self) -> str:
        """Return the study file that the hub advertises, waiting for it. The caller checks its digest."""
        data = wait_for_object(self._store, self._objects.hub_object("study"), self._retry)
        return self._objects.open_control(data, HUB, "study").text

    def close(self) -> None:
        """Stop the heartbeats and disconnect; what was sent remains."""
        self._presence.stop()
        self._store.close()
        self._lock.close()

    # -- messages

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        self._presence.raise_if_replaced()
        run = self._run_id()
        self._retry("writes", lambda: self._mailbox.write(run, round, attempt, step, data))
        self._retry("writes", lambda: self._mailbox.deliver(step))

    def sent_message(self, site: str, step: str) -> Message | None:
        message = self._mailbox.written(step)
        return message if message is not None and message.run == self._run_id() else None

    def receive_message(self, site: str, round: int, min_attempts: Mapping[str, int]) -> Message | None:
        def receive() -> tuple[Message | None] | None:
            if self._is_late(round):
                return (None,)
            self._resend_lost_messages()
            message = self._mailbox.find(self._run_id(), round, min_attempts)
            if message is not None:
                return (message,)
            self._raise_if_closed(round)
            return None

        return self._poll("reads", "message", receive)[0]

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        return open_message(sealed, self._objects.seal, party, self._study, self._run_id())

    def retract(self, site: str, round: int) -> None:
        outgoing = OutgoingUpdate(self._outbox, round)
        if outgoing.complete or outgoing.delivered:
            # An empty object means none: a site cannot delete what it stored at a broker.
            name = manifest_name(self._objects.update_prefix(self._site, round))
            self._retry("retracts its update", lambda: self._store.put(name, b""))
            outgoing.remove()

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        run = self._run_id()
        self._retry("stores a secret", lambda: self._mailbox.write_secret(run, name, secret))

    def load_secret(self, site: str, name: str) -> bytes | None:
        return self._mailbox.read_secret(self._run_id(), name)

    # -- receiving

    def _fetch_once(self, round: int) -> GlobalModel | None:
        self._tell_if_older()
        self._send_unfinished()
        manifest = self._newest_manifest()
        if manifest is not None:
            self._tell_if_older()  # a folder from before its first model knows only now which run it is of
            path = self._model_to_repeat(manifest, round)
            if path is None and manifest.round >= round:
                path = self._fetched(manifest)
            if path is not None:
                self.model_path, self._presence.last_contact_s = path, time.time()
                received = encoding.read_global(path, self._study)
                self._asynchronous = received.asynchronous
                return received
            self._resend_lost(manifest)
        self._raise_if_closed(round)
        return None

    def _fetched(self, manifest: Manifest) -> Path:
        """Return the model that a manifest names; where that fails, this site's heartbeats say so."""
        self._presence.lacks = None
        try:
            return self._models.fetch(manifest)
        except (WireError, MissingObject):
            self._presence.lacks = manifest.round
            raise

    def _join(self) -> None:
        # Before the claim, which may take a while: a store that is lost meanwhile takes it along.
        self._sent_at_start = self._objects.get_site_object(self._site, "announced")
        self._presence.claim()

    def _tell_if_older(self) -> None:
        """Log, when it starts, that this site has sent updates of which its folder knows nothing."""
        if self._age_checked or not (run := self._run_id()):
            return
        data, self._age_checked = self._sent_at_start, True
        try:
            sent = None if data is None else self._objects.open_manifest(data, self._site)
        except WireError:
            return  # another study's or another medfed's
        known = max((int(path.stem[1:]) for path in self._outbox.glob("r*.manifest")), default=0)
        known = max(known, self._models.newest)
        if sent is not None and sent.run == run and sent.round > known:
            self._warn(older_folder(sent.round, known))

    def _newest_manifest(self) -> Manifest | None:
        """Return the manifest of the hub's newest model, checked for this site's run and an old round."""
        manifest, _ = self._hub_manifest("current")
        if manifest is None:
            return None
        pinned = read_or_create(self._folder / "run", manifest.run)
        refused = manifest.run != pinned or manifest.round < self._models.newest
        self._presence.holds = (pinned, self._models.newest) if refused else None
        if manifest.run != pinned:
            raise WireError(
                f"it is of another run of this study than this site takes part in ({manifest.run[:8]}, not "
                f"{pinned[:8]}); if the study was started again, start this site with a new folder"
            )
        newest = self._models.newest
        if manifest.round < newest:
            raise WireError(
                f"it is that of round {manifest.round}, and this site already has that of round {newest}: an "
                f"older one is not accepted"
            )
        return manifest

    def _hub_manifest(self, what: str) -> tuple[Manifest | None, bool]:
        """Return the hub's manifest under `current` or `announced`, and whether it is new."""
        data = self._objects.get_hub_object(what)
        if data is None:
            return None, False
        known = self._opened.get(what)
        if known is None or known[0] != data:
            opened = self._objects.open_manifest(data, HUB)
            self._objects.seal.accept_revocations(opened.revoked)
            self._opened[what] = data, opened
        manifest = self._opened[what][1]
        assert isinstance(manifest, Manifest)
        return manifest, known is not self._opened[what]

    def _prefetch_model(self, round: int) -> bool:
        """Fetch available chunks of a model that the hub is publishing; return whether any were new."""
        manifest, is_new = self._hub_manifest("announced")
        if manifest is None:
            return False
        if manifest.round < round or manifest.run != self._run_id():
            return False
        return self._models.prefetch(manifest) or (is_new and not self._models.path(manifest.round).exists())

    def _model_to_repeat(self, manifest: Manifest, round: int) -> Path | None:
        """Return the model of `round` if this site was killed after sending its next update.

        Training from it again restores the site's optimiser; the update that it then sends was sent already.
        So a killed site's later rounds are those of one that was not killed, bit for bit.
        """
        path = self._models.path(round)
        sent = OutgoingUpdate(self._outbox, round + 1)
        if not (manifest.round == round + 1 and sent.delivered and path.exists()):
            return None
        if self._models.is_whole(round, manifest.chunk_bytes):
            return path
        self._warn(damaged_model(round))
        return None

    def _run_id(self) -> str:
        """Return the identifier of the run that this site takes part in, empty before its first model."""
        return read_or_create(self._folder / "run", "")

    def _raise_if_closed(self, round: int) -> None:
        data = self._objects.get_hub_object("state")
        if data is None:
            return
        known = self._opened.get("state")
        if known is None or data != known[0]:
            self._opened["state"] = data, self._objects.open_control(data, HUB, "state")
            self._hub_seen = time.monotonic()
        state = self._opened["state"][1]
        if isinstance(state, ControlMessage) and state.text == CLOSED and self._has_settled(state.count):
            raise EndedError(
                f"site '{self._site}' waits for round {round}, but the hub has closed the study: it "
                "has ended without this site; ask the coordinator for the final model"
            )

    def _has_settled(self, published: int) -> bool:
        """Return whether the last model from before the hub closed has arrived, or should have."""
        known = self._opened.get("current")
        seen = known[1].round + 1 if known is not None and isinstance(known[1], Manifest) else 0
        settle_s = min(self._store.settle_s, MAX_SETTLE_CLOSED_S)
        return seen >= published or time.monotonic() - self._hub_seen >= settle_s

    # -- sending

    def _measure(self, update: Update) -> Manifest:
        if self._measured is None or self._measured[0] is not update:
            pieces = encoding.update_pieces(update, self._study)
            previous = max(self._sent_before(update.round), default=0)
            self._measured = update, self._objects.describe(self._run_id(), update.round, pieces, previous)
        return self._measured[1]

    def _sent_before(self, round: int) -> list[int]:
        """Return the rounds before this one for which its folder knows that it sent an update, in order."""
        rounds = sorted(int(path.stem[1:]) for path in self._outbox.glob("r*.delivered"))
        return [number for number in rounds if number < round]

    def _write_and_deliver(self, outgoing: OutgoingUpdate, update: Update) -> None:
        # An update from before a restart is resumed: a round's first update counts, and some of it
        # may be stored.
        if not (outgoing.writing or (outgoing.complete and outgoing.intact())):
            manifest = self._measure(update)
            pieces = encoding.update_pieces(update, self._study)
            outgoing.write(split_chunks(pieces, manifest.chunk_bytes), manifest)
        self._deliver(outgoing)

    def _deliver(self, outgoing: OutgoingUpdate) -> None:
        if self._is_late(outgoing.round):
            self._warn(f"its update for round {outgoing.round} is too late, the hub has moved on")
            return
        sealed = encode_sealed(outgoing.manifest, self._objects.seal)
        if outgoing.is_partly_stored and self._objects.get_site_object(self._site, "announced") is None:
            outgoing.mark_lost()  # the store was lost since an earlier attempt, and its chunks with it
        self._store.put(self._objects.site_object(self._site, "announced"), sealed)
        prefix = self._objects.update_prefix(self._site, outgoing.round)
        self._store.put_many(outgoing.chunks(prefix), outgoing.mark_stored)
        name = manifest_name(prefix)
        self._store.put(name, sealed, if_absent=not self._is_replaceable(name))
        outgoing.mark_delivered()
        if self._objects.get_site_object(self._site, "announced") != sealed:
            outgoing.mark_lost()  # the store was lost meanwhile, and the chunks with it
            raise Unreachable("the store lost the update while it was being sent")

    def _is_replaceable(self, name: str) -> bool:
        """Return whether a manifest of this site was retracted, or is something that nobody may open."""
        try:
            return self._store.get(name) == b""
        except UnsafeObject:
            return True

    def _is_lost(self, name: str) -> bool:
        """Return whether a manifest of this site is no longer there, or something else is in its place."""
        try:
            return self._store.get(name) is None
        except UnsafeObject:
            return True

    def _is_late(self, round: int) -> bool:
        """Return whether the hub has already merged this round, and takes no update for it any more."""
        if self._asynchronous:
            return False
        try:
            manifest = self._newest_manifest()
        except WireError:
            return False
        return manifest is not None and manifest.round >= round

    def _send_unfinished(self) -> None:
        """Send what an earlier process had not finished sending, unless it is late or damaged."""
        for path in sorted(self._outbox.glob("r*.manifest")):
            outgoing = OutgoingUpdate(self._outbox, int(path.stem[1:]))
            if outgoing.delivered:
                continue
            if not self._is_late(outgoing.round) and outgoing.intact():
                self._deliver(outgoing)
            if not outgoing.delivered:
                outgoing.remove()

    def _resend_lost(self, manifest: Manifest) -> None:
        """Send again the update that the hub still waits for, if the store no longer holds it.

        A broker's disk was replaced or a share restored, or another run of the study was
        started and cleared it.
        """
        outgoing = OutgoingUpdate(self._outbox, manifest.round + 1)
        name = manifest_name(self._objects.update_prefix(self._site, outgoing.round))
        lost = outgoing.delivered and outgoing.complete and self._is_lost(name)
        # The hub publishes first and then deletes what it has merged; so this is checked afterwards.
        if lost and not self._is_late(outgoing.round) and outgoing.intact():
            self._warn(f"its update for round {outgoing.round} is no longer there; sending it again")
            outgoing.mark_lost()
            self._deliver(outgoing)

    def _resend_lost_messages(self) -> None:
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_STORE_S
            for step in self._mailbox.deliver_lost():
                self._warn(f"its message for step '{step}' is no longer there; sending it again")

    # -- waiting

    def _poll(
        self,
        doing: str,
        what: str,
        attempt: Callable[[], _T | None],
        prefetch_some: Callable[[], bool] = lambda: False,
    ) -> _T:
        """Return the first result of `attempt` that is not None, pausing longer as time passes."""
        began, backoff = time.monotonic(), Backoff(self._warn)
        first, self.awaited = began, (self.awaited_as or what, time.time())
        try:
            while True:
                self._presence.raise_if_replaced()
                self._raise_if_too_long(what, first)
                self._told.look(self.awaited, time.time())
                try:
                    result = attempt()
                    if result is not None:
                        return result
                    backoff.reset()
                    if prefetch_some():
                        began = time.monotonic()  # more will arrive soon
                except (WireError, MissingObject) as error:
                    # Not raised: otherwise whoever can write to the store could stop every site.
                    self._refuse(what, error)
                except (Unreachable, OSError) as error:
                    backoff.wait(error, doing)
                    continue
                self._store.wait(max(0.01, min(MAX_BACKOFF_S, time.monotonic() - began)))
        finally:
            self.awaited = None

    def _raise_if_too_long(self, what: str, began: float) -> None:
        """Raise if a wait that began then (time.monotonic) is over."""
        now = time.monotonic()
        if self.max_wait_s is not None and now - began > self.max_wait_s:
            raise ExchangeError(
                f"site '{self._site}': no {what} came from the hub within {self.max_wait_s:g} s; does "
                "the hub run, under the same study? Start this site again with its folder, and it goes on"
            )
        if self.max_silence_s is not None and now - max(began, self._hub_seen) > self.max_silence_s:
            raise EndedError(
                f"site '{self._site}': no sign of life from the hub for {self.max_silence_s / 3600:g} hours "
                f"(give_up_hours in the site file) while it waited for its {what}; ask the coordinator "
                "whether the study goes on. Start this site again, and it does"
            )

    def _refuse(self, what: str, error: Exception) -> None:
        """Log an unusable object once, and report it to `on_refused` unless it is merely late."""
        reason = f"the hub's {what} is refused: {error}"
        is_new = self._warn(f"{reason}; waiting for a valid one")
        if is_new and isinstance(error, WireError):
            self.on_refused(reason)
