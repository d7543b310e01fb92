"""The base of all trackers: a frozen record that opens one of Lightning's loggers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from medfed.errors import StudyError
from medfed.registry import Kind, kind_of


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker calls a run: its folder, its study, and whose numbers these are, such as 'hub'."""

    folder: Path
    study: str
    party: str

    @property
    def place(self) -> Path:
        """Where a tracker may write files."""
        return self.folder / "trackers"


class Tracker(Kind, frozen=True):
    """A place that gets a run's numbers while it trains, and nothing else of it."""

    folder: ClassVar[str] = "trackers"
    # The packages that it needs, and what to install for each.
    packages: ClassVar[Mapping[str, str]] = {}

    def open(self, run: TrackedRun) -> Any:
        """Return Lightning's logger for a run; it may look for a server."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """The server that it sends to, '' if it writes files in the run folder."""
        return ""


def check_url(tracker: str, url: str | None) -> None:
    """Check the address of a tracker's server.

    Raises:
        StudyError: if it is none, or holds a password.
    """
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise StudyError(
            f"trackers: {tracker}: url: expected http://HOST or https://HOST, such as {_EXAMPLE}"
        )
    if parts.username is not None or parts.password is not None or parts.query:
        raise StudyError(
            f"trackers: {tracker}: url: holds a name, a password or a query, and this file is no place for a "
            "secret; set the tracker's own environment variables instead"
        )


_EXAMPLE = "https://tracking.example.org"


# Services of the public internet that track for anybody.
_PUBLIC = ("wandb.ai", "databricks.com", "dagshub.com")


def outside(trackers: Sequence[Tracker]) -> Iterator[str]:
    """Yield for each tracker of a hospital that sends to a public service why it may not."""
    for tracker in trackers:
        host = urlsplit(tracker.address).hostname or ""
        if any(host == one or host.endswith(f".{one}") for one in _PUBLIC):
            yield (
                f"trackers: {kind_of(tracker)}: url: {host} is outside of this hospital, which the "
                "numbers of its training leave by its updates alone; name a server of the hospital's own"
            )


def missing_packages(trackers: Sequence[Tracker]) -> Iterator[str]:
    """Yield for each package that a tracker needs and that is missing what to install."""
    for tracker in trackers:
        for package, extra in tracker.packages.items():
            if find_spec(package) is None:
                yield (
                    f"trackers.kind: '{kind_of(tracker)}' needs the package {package}, which is not "
                    f'installed here; run `pip install "{extra}"`'
                )
