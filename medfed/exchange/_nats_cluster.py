"""What a cluster of brokers asks of its clients: patience while it elects, and no older answers than before.

The leader of a stream stores; a request that it had taken when it died is never answered, though the broker
that this party is connected to lives. Every broker reads from its own copy, which may be behind for a moment;
a party that was moved to another broker must not take what it has seen for undone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

log = logging.getLogger("medfed.exchange")

# How long a broker's copy may be behind the others': so long an older answer is not believed, and what is
# missing is not yet refused. A copy that must catch up answers nothing until it has.
SETTLE_S = 10.0

# The shortest wait for an answer, and how many times as long as the last one took a wait is: a link may be
# slow. Brokers elect a leader within 4 to 9 s.
MIN_PATIENCE_S, _PATIENCE_FACTOR = 2.0, 4.0

# A broker that is behind and that the leader has not heard of for so long does not run, or is cut off.
UNHEARD_S = 10.0

# How long an attempt to connect to one of several brokers takes: one that has no power does not even refuse.
CONNECT_ONE_S = 5

NO_ANSWER = (
    "the brokers do not answer at the moment: they elect a leader, which takes some seconds, or fewer than "
    "two of the three run and reach each other; it waits until two do"
)
NOBODY = (
    "the brokers take nothing of this at the moment: they elect a leader, which takes some seconds; or fewer "
    "than two of the three run and reach each other; or the hub was not started yet, or this site is not "
    "enrolled there; it waits until they take it"
)

BEHIND = "the broker that answers is behind the others; it waits until that one has caught up"


# After how long without an answer a line says so, and how long after it the next may.
TELL_SLOW_S, TELL_SLOW_AGAIN_S = 5.0, 60.0


class Patience:
    """How long to wait for an answer, by how long the last ones took."""

    def __init__(self, max_s: float, party: str = "") -> None:
        self._max_s, self._party = max_s, party
        self._next_line = 0.0  # time.monotonic
        self.seconds = min(MIN_PATIENCE_S, max_s)

    async def answer_of(self, request: asyncio.Future[Any]) -> Any:
        """Return the answer to a request that was just sent to one of several brokers.

        Where it takes long, a line says so: the wait before the next attempt may be minutes on a slow link.
        """
        began = time.monotonic()
        await asyncio.wait({request}, timeout=TELL_SLOW_S)
        if not request.done() and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + TELL_SLOW_AGAIN_S
            log.warning(
                "%s: the brokers have not answered a request for %g s; it waits for at most %.0f s in all, "
                "as long as the last answers make likely, and then asks again",
                self._party,
                TELL_SLOW_S,
                self.seconds,
            )
        answer = await request
        self.answered(time.monotonic() - began)
        return answer

    def tell_silent(self) -> None:
        """Log, once per minute, that the only broker does not even say that it lives."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + TELL_SLOW_AGAIN_S
            log.warning(
                "%s: the broker answers nothing at the moment, not even that it lives; it waits for at most "
                "%.0f s and asks again. On a slow link that passes; else its log (nats-server.log beside "
                "nats.conf) says why: start it again",
                self._party,
                self._max_s,
            )

    def answered(self, after_s: float) -> None:
        """An answer came after so many seconds."""
        self.seconds = min(max(MIN_PATIENCE_S, _PATIENCE_FACTOR * after_s), self._max_s)

    def lost(self, waited_s: float) -> None:
        """A request was given up after so long: if the broker is as slow as that, the next waits longer."""
        self.seconds = min(max(self.seconds, 2 * waited_s), self._max_s)

    def missed(self, ping_s: float) -> None:
        """No answer came in time, and one to a ping took so long: the link may be slower than thought."""
        if ping_s > self.seconds / 4:
            self.seconds = min(2 * self.seconds, self._max_s)


class Unreached:
    """The brokers of a cluster that a stream's leader does not reach, by what it says of its replicas.

    A leader calls a broker offline only if it was told so when the connection ended; one that became leader
    later, while that broker was down, says for ever that it is not current and was never heard of. A leader
    has heard of no one in its first second, too, so such a broker counts if it is the same twice in a row.
    """

    def __init__(self) -> None:
        self._unheard: frozenset[str] = frozenset()

    def names(self, replicas: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
        """Return the sorted names; `replicas` is the `cluster.replicas` of a stream's information."""
        replicas, before = list(replicas), self._unheard
        self._unheard = frozenset(str(one["name"]) for one in replicas if _is_unheard(one))
        offline = {str(one["name"]) for one in replicas if one.get("offline")}
        return tuple(sorted(offline | (self._unheard & before)))


def _is_unheard(replica: Mapping[str, Any]) -> bool:
    # `active` is the time since it was last heard of in nanoseconds, 0 if never.
    return not replica.get("current") and not 0 < replica.get("active", 0) < UNHEARD_S * 1e9


class Seen:
    """The newest sequence number that was seen under each subject, so that an older answer is recognised."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._newest: dict[str, int] = {}
        self._behind_since: dict[str, float] = {}

    def note(self, subject: str, sequence: int) -> None:
        """Note what was stored or read; 0 for nothing."""
        self._newest[subject] = sequence
        self._behind_since.pop(subject, None)

    def is_old(self, subject: str, sequence: int) -> bool:
        """Return whether an answer is older than an earlier one; if it stays so, the store was lost."""
        if sequence >= self._newest.get(subject, 0):
            self.note(subject, sequence)
            return False
        since = self._behind_since.setdefault(subject, self._clock())
        if self._clock() - since < SETTLE_S:
            return True
        self.note(subject, sequence)
        return False

    def forget(self) -> None:
        """Forget everything: this party has deleted some of it itself."""
        self._newest.clear()
        self._behind_since.clear()
