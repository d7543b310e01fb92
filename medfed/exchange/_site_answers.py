"""What each site answers to the hub in a round: its update, or that it stopped, checked and downloaded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from medfed.errors import MedfedError, SiteError, UpdateError, WireError
from medfed.exchange._chunks import download
from medfed.exchange._chunks import prefetch as fetch_some
from medfed.exchange._drop_out import received_reason
from medfed.exchange._exchange import ReceivedUpdate, early_update
from medfed.exchange._later_models import LaterModels
from medfed.exchange._manifest import Manifest
from medfed.exchange._object_store import MissingObject, Unreachable, manifest_name
from medfed.exchange._partial_arrivals import NotWhole, PartialArrivals, not_whole
from medfed.exchange._protocol import MAX_ATTEMPTS, MIN_BACKOFF_S, WarnOnce
from medfed.exchange._site_heartbeats import SiteHeartbeats
from medfed.exchange._study_store import StudyStore
from medfed.wire import encoding
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# How many updates that were sent too early are kept of one site. An honest site sends none.
MAX_EARLY = 1000


class EarlyUpdates:
    """Which updates were announced before their round began: of each site a bounded number, by digest."""

    def __init__(self) -> None:
        self._digests: dict[str, dict[int, bytes]] = {}

    def add(self, site: str, manifest: Manifest) -> None:
        """Keep the first announcement for a round; of too many, those of the latest rounds are forgotten."""
        known = self._digests.setdefault(site, {})
        known.setdefault(manifest.round, _digest(manifest))
        if len(known) > MAX_EARLY:
            del known[max(known)]

    def has(self, site: str, manifest: Manifest) -> bool:
        """Return whether it is what its site announced first, and too early, for its round."""
        known = self._digests.get(site, {}).get(manifest.round)
        return known is not None and known == _digest(manifest)


def _digest(manifest: Manifest) -> bytes:
    return hashlib.sha256(msgspec.json.encode(manifest)).digest()


class SiteAnswers:
    """The sites' answers, as they lie in the store and in the hub's own files (`spool`)."""

    def __init__(
        self,
        objects: StudyStore,
        run: str,
        spool: Path,
        warn: WarnOnce,
        partial: PartialArrivals,
        heard: SiteHeartbeats,
    ) -> None:
        self._objects, self._store, self._study = objects, objects.store, objects.study_digest
        self._run, self._spool, self._warn, self._partial = run, spool, warn, partial
        self._later = LaterModels(heard, run, warn)
        # The newest published model, and the most bytes that an update of it may have; 0 is no limit.
        self.current: GlobalModel | None = None
        self.max_update_bytes = 0
        # Per site: the last announced upload, and its verified manifest.
        self._announced: dict[str, tuple[bytes, Manifest | None]] = {}
        # Updates that were sent before their round began, refused then and when their round comes.
        self.early = EarlyUpdates()
        # The round in which a site was last found to have stopped.
        self.stopped: dict[str, int] = {}
        # Why the sites that have stopped, and were not started again since, did so.
        self.reasons: dict[str, str] = {}

    def receive(
        self, round: int, site: str, start: float, weights: Callable[[], Weights] | None = None
    ) -> ReceivedUpdate | None:
        """Return a site's update for a round if it is there, or that it stopped.

        It is decoded against the newest model, or against `weights`, where a site may send several: then the
        caller knows that this one was sent.
        """
        prefix = self._objects.update_prefix(site, round)
        data, size = b"", 0
        try:
            with not_whole():
                data = self._store.get(manifest_name(prefix)) or b""
                manifest = self._objects.open_manifest(data, site) if data else None
                if manifest is None and weights is not None:
                    raise MissingObject("its manifest is not there, and a later update says that it was sent")
            if manifest is None:
                return self.absence(round, site) or self._refused_early(round, site)
            size = manifest.bytes
            self._check(manifest, round)
            if self.early.has(site, manifest):
                raise UpdateError("it was sent before the round began, so it comes from another model")
            # A late update's file is its own: another one of this site may come before both are merged.
            path = self._spool_file(site) if weights is None else self._spool / f"{site}.{round}.late"
            with not_whole():
                self._download(manifest, prefix, path)
            assert self.current is not None
            before = self.current.weights if weights is None else weights()
            update = encoding.read_update(path, before, self._study)
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
        if self.max_update_bytes and manifest.bytes > self.max_update_bytes:
            raise WireError(
                f"it holds {manifest.bytes} bytes; for this model at most {self.max_update_bytes} are "
                f"accepted"
            )

    def prefetch(self, round: int, site: str) -> bool:
        """Fetch the available chunks of an update that a site is sending; return whether anything was new."""
        try:
            data = self._objects.get_site_object(site, "announced")
            if data is None:
                return False
            is_new = data != self._announced.get(site, (None, None))[0]  # which may be empty, too
            if is_new:
                self._announced[site] = data, None
                self._announced[site] = data, self._objects.open_manifest(data, site)
            manifest = self._announced[site][1]
            if manifest is None:
                return False
            self._check(manifest, round)
            prefix = self._objects.update_prefix(site, round)
            return fetch_some(self._store, manifest, prefix, self._spool_file(site), overwrite=True) or is_new
        except WireError:
            # It is an earlier round's. If this round's is invalid, its final manifest will say why.
            return False

    def _refused_early(self, round: int, site: str) -> ReceivedUpdate | None:
        """Return the refusal of an update that a site announced for a later round, once per announcement."""
        data, manifest = self._announced.get(site, (b"", None))
        if manifest is None or manifest.run != self._run or manifest.round <= round:
            return None
        self._announced[site] = data, None
        self.early.add(site, manifest)
        return early_update(site, round, manifest.round, manifest.bytes)

    def forget_files(self) -> None:
        """Remove the files of updates that were sent late: they are merged."""
        for path in self._spool.glob("*.late"):
            path.unlink()

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

    def absence(self, round: int, site: str) -> ReceivedUpdate | None:
        """Return why a site cannot answer: that it has stopped, or refuses what this hub publishes."""
        return self.drop_out(round, site) or self._later.refusal(round, site)

    def drop_out(self, round: int, site: str) -> ReceivedUpdate | None:
        """Return that a site has stopped, if it says so."""
        try:
            data = self._objects.get_site_object(site, "dropped_out")
            if data is None:
                return None
            message = self._objects.open_control(data, site, "dropped_out")
        except WireError as error:
            self._warn(f"a drop-out of site '{site}' is refused: {error}", refused=True)
            return None
        if not message.text:
            self.reasons.pop(site, None)
            return None
        self.stopped[site] = round
        self.reasons[site] = str(received_reason(message.text))
        return ReceivedUpdate(site, None, SiteError(f"site '{site}', round {round}: {self.reasons[site]}"))

    def look_for_return(self) -> None:
        """Note which of the sites that had stopped have been started again."""
        for site in list(self.reasons):
            self.drop_out(self.stopped[site], site)
