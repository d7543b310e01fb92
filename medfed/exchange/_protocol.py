"""How site and hub communicate over an object store: what is stored where, and how each resumes after a kill.

    the hub    glob/<study>/announced/m              the manifest of the model that it is about to publish
               glob/<study>/r<N>/c/<i>-<digest>      the chunks of the model after N merges
               glob/<study>/current/m                its manifest, sealed, written last, replacing the last
               glob/<study>/state/m                  that the study is open, every few seconds, or closed
               glob/<study>/study/m                  the study's text; who is offered it, see `_offers.py`
    a site     up/<study>/<site>/announced/m         the manifest of the update that it is about to send
               up/<study>/<site>/r<N>/c/<i>-<digest> the chunks of its update for round N
               up/<study>/<site>/r<N>/m              its manifest, sealed, written last and only once
               up/<study>/<site>/heartbeat/m         a heartbeat, every few seconds
               up/<study>/<site>/dropped_out/m       why it stops, or an empty text
    both       small messages, see `_mailbox.py`

Everything is sealed (`wire/signing.py`) and every chunk has a digest, so the worst that the store can do is
withhold data. An announced object may be fetched while it is still being sent; it is accepted when the
manifest that is written last names it. What a party needs after a kill -9 is in its own folder: a site's last
two models and its outgoing update, the hub's identifier of this run and the updates received so far. A site
that restarts with its folder sends what was not sent yet.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

from medfed.errors import EndedError, ExchangeError
from medfed.exchange._object_store import ObjectStore, Refused, Unreachable
from medfed.files import lock, private_folder, require_file_locks, write_whole
from medfed.wire.untrusted_text import for_log

require_file_locks("an exchange across machines")

log = logging.getLogger("medfed.exchange")

# The first and the longest pause between two attempts.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
_BACKOFF_FACTOR = 1.7

# How often bytes that do not match their manifest are fetched before the update is refused: a proxy or a
# cache may have damaged them once.
MAX_ATTEMPTS = 3

# A site counts as offline after this many heartbeat intervals without a heartbeat.
OFFLINE_AFTER_HEARTBEATS = 2.5

# How often a waiting hub looks whether the store still holds what it published, and a site its messages.
CHECK_STORE_S = 5.0

# How often it looks whether its study is still on the lists of those that are offered.
CHECK_OFFERS_S = 30.0

_T = TypeVar("_T")


# After how long an outage that passed and came again is logged again.
TELL_AGAIN_S = 60.0

# How many distinct warnings one party logs: a site that sends new nonsense for ever fills no disk.
MAX_WARNINGS = 1000


class WarnOnce:
    """A log of one party's warnings that writes each distinct text once."""

    def __init__(self, party: str) -> None:
        self.party = party
        self._logged: set[str] = set()
        # Why something fails at present or failed before, and when that was logged last (time.monotonic).
        self._outages: dict[str, float] = {}
        self._is_failing = False
        # Called once with each text that says what was refused, for an audit log.
        self.on_refused: Callable[[str], None] = lambda text: None

    def __call__(self, text: str, refused: bool = False) -> bool:
        """Log a warning, and return whether it is new; `refused` says that something was."""
        text = for_log(text)
        # Beyond the limit nothing is new: else who writes ever other texts would fill logs.
        is_new = text not in self._logged and len(self._logged) < MAX_WARNINGS
        if is_new:
            self._logged.add(text)
            log.warning("%s: %s", self.party, text)
            if refused:
                self.on_refused(text)
        return is_new

    def failing(self, doing: str, reason: str, refused: bool = False) -> None:
        """Log why `doing` fails: once, whatever else fails for this reason, and again if it passed between.

        An outage of a broker is one line, a second one an hour later another.
        """
        reason, now = for_log(reason), time.monotonic()
        told = self._outages.get(reason)
        again = told is not None and not self._is_failing and now - told >= TELL_AGAIN_S
        self._is_failing = True
        if len(self._outages) >= MAX_WARNINGS or not (told is None or again):
            return
        self._outages[reason] = now
        if again:
            log.warning("%s: %s: %s", self.party, doing, reason)
        else:
            self(f"{doing}: {reason}", refused)

    def works(self) -> None:
        """Note that what failed works again."""
        self._is_failing = False


class Backoff:
    """Growing pauses between attempts of something that fails for the moment."""

    def __init__(self, warn: WarnOnce) -> None:
        self._warn = warn
        self._pause_s = MIN_BACKOFF_S

    def reset(self) -> None:
        """Start again with the shortest pause, after a success."""
        self._pause_s = MIN_BACKOFF_S
        self._warn.works()

    def wait(self, error: Unreachable | OSError, doing: str) -> None:
        """Log why `doing` failed and pause before the next attempt.

        Raises:
            ExchangeError: if this party's own disk failed, for any reason but lack of space.
        """
        if isinstance(error, OSError):
            if error.errno not in _NO_SPACE:
                raise ExchangeError(
                    f"{doing}: its own disk (the run folder) failed: {error.strerror or type(error).__name__}"
                ) from None
            self._warn.failing(
                doing, "its own disk (the run folder) is full; it continues once there is space"
            )
        else:
            self._warn.failing(doing, f"{error}; trying again", isinstance(error, Refused))
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * _BACKOFF_FACTOR, MAX_BACKOFF_S)


# The errors of a full disk and of a disk quota: they pass once space is freed. Other disk errors do not.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Retry:
    """Calls a function until it succeeds, while the store is unreachable or the own disk is full."""

    def __init__(
        self,
        warn: WarnOnce,
        raise_if_stopped: Callable[[], None] = lambda: None,
        max_outage_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._warn, self._raise_if_stopped, self._max_outage_s = warn, raise_if_stopped, max_outage_s

    def __call__(self, doing: str, call: Callable[[], _T]) -> _T:
        """Return what `call` returns; `doing` says in warnings what it does.

        Raises:
            EndedError: if it has failed for longer than the party's `max_outage_s`.
        """
        backoff, began = Backoff(self._warn), time.monotonic()
        while True:
            self._raise_if_stopped()
            try:
                result = call()
            except (Unreachable, OSError) as error:
                self._raise_if_too_long(began, doing)
                backoff.wait(error, doing)
                continue
            backoff.reset()
            return result

    def _raise_if_too_long(self, began: float, doing: str) -> None:
        limit_s = self._max_outage_s()
        if limit_s is not None and time.monotonic() - began > limit_s:
            raise EndedError(
                f"{self._warn.party}: {doing}: without success for {limit_s / 3600:g} hours (give_up_hours "
                "in the site file); its log says why. Start this site again, and it goes on"
            )


def wait_for_object(store: ObjectStore, name: str, retry: Retry) -> bytes:
    """Return the object with the text of a study, waiting until there is one."""
    while True:
        data = retry("asks for the study", lambda: store.get(name))
        if data is not None:
            return data
        store.wait(1.0)


def acquire_lock(path: Path, who: str) -> TextIO:
    """Return an exclusively locked file; closing it releases the lock.

    Raises:
        ExchangeError: if another process holds the lock.
    """
    private_folder(path.parent)
    file = path.open("w")
    try:
        lock(file, wait=False)
    except OSError:
        file.close()
        raise ExchangeError(
            f"{who} already runs with this folder: another process holds its exchange/{path.name}, and only "
            f"one may. The run's status.json says what that process does; to run here instead, stop it first"
        ) from None
    return file


def read_or_create(path: Path, text: str) -> str:
    """Return a small file's text, writing `text` to it if there is no file (unless `text` is empty).

    The text is followed by its checksum: with another run's identifier a party would wait for ever, or refuse
    everybody else.

    Raises:
        ExchangeError: if the file is damaged.
    """
    if path.exists() and (stored := path.read_text(errors="replace")):
        return _checked(stored, path.name)
    if text:
        write_whole(path, f"{text}\n{_checksum(text)}")
    return text


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checked(stored: str, name: str) -> str:
    text, line_end, checksum = stored.partition("\n")
    # An earlier medfed wrote no checksum.
    if checksum != _checksum(text) if line_end else len(text) > _MAX_BARE:
        raise ExchangeError(
            f"the run folder's exchange/{name} is damaged: it is not what was written; restore the run "
            "folder from a back-up, or begin a new run in another folder"
        )
    return text


# The length of an identifier without a checksum.
_MAX_BARE = 32
