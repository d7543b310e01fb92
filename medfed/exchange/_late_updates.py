"""What a hub that merges without rounds keeps: the models that sites train from, and what it collected."""

from __future__ import annotations

from pathlib import Path

from medfed.errors import UpdateError, WireError
from medfed.exchange._manifest import Manifest
from medfed.exchange._object_store import manifest_name
from medfed.exchange._protocol import WarnOnce
from medfed.exchange._study_store import StudyStore
from medfed.files import private_folder, replacing
from medfed.wire import encoding
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# How many models the hub keeps on its disk. An update that was trained from an older one is refused.
MAX_MODELS = 16


class LateUpdates:
    """The hub's own copies of its newest models, and which updates of each site it has collected."""

    def __init__(
        self,
        objects: StudyStore,
        run: str,
        folder: Path,
        warn: WarnOnce,
        early: dict[tuple[str, int], Manifest],
    ) -> None:
        self._objects, self._run, self._folder, self._warn = objects, run, folder, warn
        # Per site: the newest round that was collected, and rounds for which it sent nothing.
        self._newest: dict[str, int] = {}
        self._absent: set[tuple[str, int]] = set()
        # What was collected and still lies in the store.
        self._stored: set[tuple[str, int]] = set()
        self._announced: dict[str, tuple[bytes, Manifest | None]] = {}
        # Updates that were announced before their round began (`SiteAnswers`, which refuses them).
        self._early = early

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
        """Return the first round, up to this one, whose update of a site lies there and is new; None if none.

        `merged` is the site's newest round that is merged already.
        """
        if site not in self._newest:
            self._newest[site] = merged
            # What a hub that was killed had merged and not deleted would take the site's room at a broker.
            self._stored |= {(site, number) for number in range(max(1, merged - MAX_MODELS), merged + 1)}
        announced = self._announcement(site)
        if announced is None or announced.run != self._run:
            return None
        if announced.round > round:
            self._early.setdefault((site, announced.round), announced)
        for number in range(self._newest[site] + 1, min(announced.round, round) + 1):
            if (site, number) in self._absent:
                continue
            if self._objects.store.get(manifest_name(self._objects.update_prefix(site, number))):
                return number
            if number < announced.round:  # a site sends its rounds in order
                self._absent.add((site, number))
        return None

    def _announcement(self, site: str) -> Manifest | None:
        data = self._objects.get_site_object(site, "announced")
        if data is None:
            return None
        if self._announced.get(site, (None, None))[0] != data:  # which may be empty, too
            self._announced[site] = data, None
            try:
                self._announced[site] = data, self._objects.open_manifest(data, site)
            except WireError as error:
                self._warn(f"what site '{site}' announces is refused: {error}", refused=True)
        return self._announced[site][1]

    def collected(self, site: str, round: int) -> None:
        """Note that a site's update of a round was collected."""
        self._newest[site] = round
        self._absent = {(other, number) for other, number in self._absent if other != site}
        self._stored.add((site, round))

    def clear(self) -> None:
        """Delete from the store what was collected: it is merged, and the sites have a newer model."""
        for site, number in sorted(self._stored):
            self._objects.store.delete_update(self._objects.update_prefix(site, number))
            self._stored.discard((site, number))
