"""The sites that the hub has heard of, and when; and who missed a deadline and is silent since."""

from __future__ import annotations

import time
from collections.abc import Iterable

from medfed.errors import WireError
from medfed.exchange._presence import HOLDS, LACKS
from medfed.exchange._protocol import OFFLINE_AFTER_HEARTBEATS, WarnOnce
from medfed.exchange._study_store import StudyStore


class SiteHeartbeats:
    """The last heartbeat of each site, as the hub has read it."""

    def __init__(self, objects: StudyStore, warn: WarnOnce) -> None:
        self._objects, self._warn = objects, warn
        # Per site: its last heartbeat, and when it was first seen (time.monotonic).
        self._last: dict[str, tuple[bytes | None, float]] = {}
        # Per site: what its last heartbeat says.
        self._texts: dict[str, str] = {}
        # Per site whose heartbeats say so: the run and the round of the model that it holds and the hub does
        # not know, and since when it says that (time.monotonic).
        self._holds: dict[str, tuple[str, int, float]] = {}
        # Per site that missed a deadline: its last heartbeat at that time.
        self._timed_out: dict[str, bytes | None] = {}

    def read(self, sites: Iterable[str]) -> None:
        """Look for new heartbeats of these sites."""
        now = time.monotonic()
        for site in sites:
            try:
                data = self._objects.get_site_object(site, "heartbeat")
                if data is not None and data != self._bytes_of(site):
                    self._texts[site] = text = self._objects.open_control(data, site, "heartbeat").text
                    self._note_held(site, text, now)
                    self._last[site] = (data, now)
            except WireError as error:
                self._warn(f"a heartbeat of site '{site}' is refused: {error}", refused=True)

    def ages(self) -> dict[str, float]:
        """Return for each site that has sent a heartbeat how many seconds ago the last new one was seen."""
        now = time.monotonic()
        # A copy: a display asks from another thread.
        return {site: now - seen for site, (data, seen) in dict(self._last).items() if data is not None}

    def online(self) -> set[str]:
        """Return the sites whose last heartbeat is recent."""
        max_age = OFFLINE_AFTER_HEARTBEATS * self._objects.store.heartbeat_s
        return {site for site, age in self.ages().items() if age <= max_age}

    def lacking(self, round: int) -> str:
        """Return a site that lacks some of the model of a round, by its last heartbeat; "" if none does."""
        wanted = f"{LACKS} {round}"
        return min((site for site, text in self._texts.items() if text == wanted), default="")

    def held(self, site: str) -> tuple[str, int, float] | None:
        """Return of which run and round a site holds a model while it refuses the hub's, and since when."""
        return self._holds.get(site)

    def _note_held(self, site: str, text: str, now: float) -> None:
        words, before = text.split(), self._holds.pop(site, None)
        if len(words) == 3 and words[0] == HOLDS and words[2].isdecimal():
            run, number = words[1], int(words[2][:9])
            since = before[2] if before is not None and before[:2] == (run, number) else now
            self._holds[site] = (run, number, since)

    def answered(self, site: str) -> None:
        """Wait for a site again that had missed a deadline."""
        self._timed_out.pop(site, None)

    def missed_deadline(self, sites: Iterable[str]) -> None:
        """Do not wait for these sites again until their next heartbeat."""
        self._timed_out.update({site: self._bytes_of(site) for site in sites})

    def is_offline(self, site: str) -> bool:
        """Return whether a site missed an earlier deadline and has sent no heartbeat since."""
        if site not in self._timed_out:
            return False
        if self._bytes_of(site) != self._timed_out[site]:
            del self._timed_out[site]
            return False
        return site not in self.online()

    def _bytes_of(self, site: str) -> bytes | None:
        return self._last.get(site, (None, 0.0))[0]
