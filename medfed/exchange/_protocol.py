"""How a site and the hub speak over a store: what is written where, what is believed, and how each goes
on after a kill.

    the hub    glob/<study>/coming/m                 the manifest of the model that it is about to publish
               glob/<study>/r<N>/c/<i>-<digest>      the chunks of the model after N merges
               glob/<study>/now/m                    its manifest, sealed, written last and over the one before
    a site     up/<study>/<site>/coming/m            the manifest of the update that it is about to send
               up/<study>/<site>/r<N>/c/<i>-<digest> the chunks of its update for round N
               up/<study>/<site>/r<N>/m              its manifest, sealed, written last and once
               up/<study>/<site>/here/m              a sign of life, every few seconds
               up/<study>/<site>/withdrawn/m         why it stops, or nothing
    both       small messages, as `_letterbox.py` says

Everything is sealed (`wire/signing.py`) and every chunk has a digest, so that the place in between can at
worst be silent. What is coming may be fetched while it is still being sent; it counts when the manifest that
is written last names it. What a party needs after a kill -9 is in its own folder: a site's last two models
and its update on the way, the hub's name for this run and the updates it holds already. A site that comes
back with its folder sends what was not yet sent.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

from medfed.errors import ExchangeError
from medfed.exchange._manifest import notice
from medfed.exchange._object_store import (
    ObjectStore,
    Unreachable,
    hub_control_name,
)
from medfed.wire.signing import HUB, Seal

log = logging.getLogger("medfed.exchange")

# The pauses between two tries of something that fails: the first and the longest.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0

# How often bytes that do not fit their manifest are fetched again before the update is refused: a proxy or a
# cache may have damaged them once.
MAX_ATTEMPTS = 3

# A site counts as silent after this many heartbeats without one.
SILENT_AFTER_HEARTBEATS = 2.5

# Where the study lies that was offered last, for a site that knows none yet.
ADVERTISED_STUDY = "glob/newest/study/m"

_T = TypeVar("_T")


def wait_for_study(store: ObjectStore, seal: Seal) -> tuple[str, str]:
    """Return digest and text of the study that the hub offered last, waiting for one: what a site's
    people may agree to.
    """
    told: set[str] = set()

    def tell(what: str) -> None:
        if what not in told:
            told.add(what)
            log.warning(what)

    while True:
        data = retry(tell, "asks for the study", lambda: store.get(ADVERTISED_STUDY))
        if data is not None:
            found = notice(data, seal, HUB, "study", None)
            return found.study, found.text
        store.wait(1.0)


def study_text(store: ObjectStore, seal: Seal, study: str, retry: Callable[..., bytes | None]) -> str:
    while True:
        data = retry("asks for the study", lambda: store.get(hub_control_name(study, "study")))
        if data is not None:
            return notice(data, seal, HUB, "study", study).text
        store.wait(1.0)


def retry(
    tell: Callable[[str], None],
    doing: str,
    call: Callable[[], _T],
    give_up: Callable[[], None] = lambda: None,
) -> _T:
    pause = MIN_BACKOFF_S
    while True:
        give_up()
        try:
            return call()
        except (Unreachable, OSError) as error:
            pause = backoff(tell, pause, error, doing)


# What a full disk says, and a disk quota: it passes once room is made. Any other error of one's own
# disk does not.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def backoff(tell: Callable[[str], None], pause: float, error: Exception, doing: str) -> float:
    if isinstance(error, OSError):
        if error.errno not in _NO_ROOM:
            raise ExchangeError(
                f"{doing}: its own disk (the run folder) failed: {error.strerror or type(error).__name__}"
            ) from None
        tell(f"{doing}: its own disk (the run folder) is full; it goes on when there is room")
    else:
        tell(f"{doing}: {error}; trying again")
    time.sleep(pause)
    return min(pause * 1.7, MAX_BACKOFF_S)


def acquire_lock(path: Path, who: str) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ExchangeError(
            f"{who} already runs with this folder: another process holds its exchange/{path.name}, and only one may. The run's "
            f"status.json says what that one does; to run here instead, stop it first"
        ) from None
    return file


def read_or_create(path: Path, text: str) -> str:
    """Return what a small file says, after writing `text` there if it is missing and there is any."""
    if path.exists() and (found := path.read_text()):
        return found
    if text:
        aside = path.with_suffix(".writing")
        aside.write_text(text)
        aside.replace(path)
    return text
