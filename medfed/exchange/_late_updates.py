"""What a hub that merges without rounds keeps: the models that sites train from, and what it collected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from medfed.errors import DECODING_ERRORS, ForgedError, UpdateError, WireError
from medfed.exchange._manifest import Manifest
from medfed.exchange._object_store import manifest_name
from medfed.exchange._protocol import WarnOnce
from medfed.exchange._study_store import StudyStore
from medfed.files import private_folder, replacing, write_whole
from medfed.wire import encoding
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# How many models the hub keeps on its disk. An update that was trained from an older one is refused.
MAX_MODELS = 16

# Beside them: the newest round of each site whose update was deleted from the store.
DELETED = "deleted.json"


class LateUpdates:
    """The hub's own copies of its newest models, and which updates of each site it has collected."""

    def __init__(
        self,
        objects: StudyStore,
        run: str,
        folder: Path,
        warn: WarnOnce,
        note_early: Callable[[str, Manifest], None],
    ) -> None:
        self._objects, self._run, self._folder, self._warn = objects, run, folder, warn
        # Per site: the newest round that was collected, and for which round it sent one before another.
        self._newest: dict[str, int] = {}
        self._before: dict[tuple[str, int], int] = {}
        # What was collected and still lies in the store.
        self._stored: set[tuple[str, int]] = set()
        self._announced: dict[str, tuple[bytes, Manifest | None]] = {}
        # Called with an update that is announced before its round began (`SiteAnswers` refuses it).
        self._note_early = note_early

    # -- models

    def keep_model(self, model: GlobalModel) -> None:
        """Keep a model from which sites may send updates later; the oldest ones go."""
        private_folder(self._folder)
        with replacing(self._path(model.round)) as unfinished, unfinished.open("wb") as file:
            file.writelines(encoding.global_pieces(model))
        for path in self._folder.glob("r*.global"):
            if int(path.stem[1:]) <= model.round - MAX_MODELS:
                path.unlink()

    def weights_of(self, round: int) -> Weights:
        """Return the weights of the model of a round.

        Raises:
            UpdateError: if the hub no longer holds it.
        """
        if not self._path(round).exists():
            raise UpdateError(
                f"it was trained from the model of round {round}, which the hub no longer holds (it keeps "
                f"{MAX_MODELS}); the site continues from the newest one"
            )
        return encoding.read_global(self._path(round), self._objects.study_digest).weights

    def _path(self, round: int) -> Path:
        return self._folder / f"r{round:05d}.global"

    # -- updates

    def next_of(self, site: str, round: int, merged: int) -> int | None:
        """Return the oldest round up to this one for which a site sent an update that is new; None if none.

        Each update says which one the site sent before it, so on a share that shows the later one first, the
        earlier one is returned, although it is not there yet. `merged` is the site's newest round that is
        merged already.
        """
        if site not in self._newest:
            self._newest[site] = max(merged, self._deleted().get(site, 0))
            # What a hub that was killed had merged and not deleted would take the site's room at a broker.
            self._stored |= {(site, number) for number in range(max(1, merged - MAX_MODELS), merged + 1)}
        announced = self._announcement(site)
        if announced is None or announced.run != self._run:
            return None
        if announced.round > round:
            self._note_early(site, announced)
        oldest: int | None = None
        number, previous = announced.round, announced.previous
        while number > self._newest[site]:
            if number <= round and (number < announced.round or self._is_there(site, number)):
                oldest = number
            number = previous
            previous = self._previous(site, number) if number > self._newest[site] else 0
        return oldest

    def _is_there(self, site: str, number: int) -> bool:
        return bool(self._objects.store.get(manifest_name(self._objects.update_prefix(site, number))))

    def _previous(self, site: str, number: int) -> int:
        """Return for which round a site sent an update before that for `number`; 0 if that is not there."""
        if (site, number) not in self._before:
            data = self._objects.store.get(manifest_name(self._objects.update_prefix(site, number)))
            try:
                manifest = self._objects.open_manifest(data, site) if data else None
            except WireError:  # it is not whole yet, or refused when it is received
                manifest = None
            if manifest is None or manifest.run != self._run or manifest.round != number:
                return 0
            self._before[site, number] = manifest.previous
        return self._before[site, number]

    def _announcement(self, site: str) -> Manifest | None:
        data = self._objects.get_site_object(site, "announced")
        if data is None:
            return None
        if self._announced.get(site, (None, None))[0] != data:  # which may be empty, too
            self._announced[site] = data, None
            try:
                self._announced[site] = data, self._objects.open_manifest(data, site)
            except WireError as error:
                # Of a share that is synchronised, half of it may be there: that is no refusal.
                refused = isinstance(error, ForgedError) or not self._objects.store.settle_s
                self._warn(f"what site '{site}' announces is not accepted: {error}", refused=refused)
        return self._announced[site][1]

    def collected(self, site: str, round: int) -> None:
        """Note that a site's update of a round was collected."""
        self._newest[site] = round
        self._before = {key: previous for key, previous in self._before.items() if key[0] != site}
        self._stored.add((site, round))

    def clear(self) -> None:
        """Delete from the store what was collected: it is merged, and the sites have a newer model."""
        if not self._stored:
            return
        # A hub that starts again does not wait for what it deleted, such as an update that it refused.
        private_folder(self._folder)
        deleted = self._deleted()
        for site, number in self._stored:
            deleted[site] = max(number, deleted.get(site, 0))
        write_whole(self._folder / DELETED, msgspec.json.encode(deleted))
        for site, number in sorted(self._stored):
            self._objects.store.delete_update(self._objects.update_prefix(site, number))
            self._stored.discard((site, number))

    def _deleted(self) -> dict[str, int]:
        """Return the newest round of each site whose update it deleted, this process or an earlier one."""
        path = self._folder / DELETED
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}
        except DECODING_ERRORS:
            self._warn(f"its exchange/models/{DELETED} is damaged; it may wait for updates that it refused")
            return {}
