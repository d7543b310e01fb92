"""Who waits for whom, since when: one line each, at a site and at the hub, where it takes long.

It is logged here, so that nobody who uses an exchange waits in silence: the commands, statistics before a
study, a hub and a site in scripts of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from medfed.files import utc_time

# After how long a wait is a line in the log.
TELL_WAIT_S = 60.0

# After how long the hub says that it waits for a site which is connected: training takes its time.
TELL_CONNECTED_S = 600.0


class WaitReporter:
    """Says once, in one line, what a site waits for from the hub and since when, if that takes long."""

    def __init__(self, name: str, log: Callable[[str], None]) -> None:
        self._name, self._log = name, log
        self._told: tuple[str, float] | None = None

    def look(self, awaited: tuple[str, float] | None, now_s: float) -> None:
        """Take what is awaited, and since when; both times are in seconds since 1970."""
        if awaited is not None and awaited != self._told and now_s - awaited[1] >= TELL_WAIT_S:
            self._told = awaited
            self._log(f"{self._name} waits for the hub's {awaited[0]} since {utc_time(awaited[1])}")


class SitesAwaited:
    """Says once per wait, in one line per site, what the hub waits for from it and since when."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        # Per site that is awaited: what, since when (seconds since 1970), and whether that was said.
        self._waits: dict[str, tuple[str, float, bool]] = {}

    def look(self, sites: Iterable[str], what: str, ages: Mapping[str, float], now_s: float) -> None:
        """Take the awaited sites, what is awaited, and the seconds since each site was heard of.

        `ages` lacks a site that was never heard of; `now_s` is in seconds since 1970.
        """
        former, self._waits = self._waits, {}
        for site in sites:
            known = former.get(site)
            since, told = (known[1], known[2]) if known and known[0] == what else (now_s, False)
            age = ages.get(site)
            patience_s = TELL_CONNECTED_S if age is not None and age < TELL_WAIT_S else TELL_WAIT_S
            if not told and now_s - since >= patience_s:
                told = True
                self._log(f"the hub waits for {site}'s {what} since {utc_time(since)}; {_heard(age, now_s)}")
            self._waits[site] = what, since, told


def _heard(age: float | None, now_s: float) -> str:
    if age is None:
        return "it has never been connected to this hub"
    return "it is connected" if age < TELL_WAIT_S else f"it was last heard of at {utc_time(now_s - age)}"
