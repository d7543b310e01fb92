"""A party's presence: only one process may act as a site, or as a study's hub, and it sends heartbeats."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import suppress

from medfed.errors import ExchangeError, WireError
from medfed.exchange._manifest import ControlKind
from medfed.exchange._protocol import OFFLINE_AFTER_HEARTBEATS, log
from medfed.exchange._study_store import StudyStore
from medfed.wire.signing import HUB

# What a site's heartbeat says, before the round, where some of the newest model is not in the store; and
# before the run and the round of its newest model, where it refuses the hub's as another run's, or as older.
LACKS, HOLDS = "lacks", "holds"


class SitePresence:
    """The claim of one process to act as a site, renewed by heartbeats until `stop`."""

    def __init__(self, objects: StudyStore, session: str) -> None:
        self._objects, self._site, self._session = objects, objects.party, session
        self._stopped = threading.Event()
        self._replaced: ExchangeError | None = None
        # When the other side was last reached (seconds since 1970).
        self.last_contact_s: float | None = None
        # The round of whose model some is missing in the store, or damaged.
        self.lacks: int | None = None
        # The run and the round of its newest model, while the hub publishes another run's or an older one.
        self.holds: tuple[str, int] | None = None

    def claim(self) -> None:
        """Announce this process as the site.

        Raises:
            ExchangeError: if another process already sends heartbeats for this site.
        """
        first = self._objects.get_site_object(self._site, "heartbeat")
        wait_s = OFFLINE_AFTER_HEARTBEATS * self._objects.store.heartbeat_s
        deadline = time.monotonic() + wait_s
        if self._is_of_another_process(first):
            log.warning(
                "site '%s': looks for %g s whether it takes part from another folder or machine, too",
                self._site,
                wait_s,
            )
        while self._is_of_another_process(first) and time.monotonic() < deadline:
            time.sleep(0.2)
            now = self._objects.get_site_object(self._site, "heartbeat")
            # One that is gone is no sign of life: a store that was lost took it along.
            if now != first and self._is_of_another_process(now):
                raise ExchangeError(
                    f"site '{self._site}' already takes part from another folder or machine; only one "
                    f"process may. If this one should replace it, stop the other first"
                )
        self.send("heartbeat")
        if self._objects.get_site_object(self._site, "dropped_out") is not None:
            self.send("dropped_out")

    def start(self) -> None:
        """Send heartbeats from a thread of its own until `stop`."""
        name = f"medfed-heartbeat-{self._site}"
        threading.Thread(target=self._send_heartbeats, name=name, daemon=True).start()

    def stop(self) -> None:
        """Stop the heartbeats."""
        self._stopped.set()

    def raise_if_replaced(self) -> None:
        """Raise an ExchangeError if another process has taken over this site."""
        if self._replaced is not None:
            raise self._replaced

    def send(self, what: ControlKind, text: str = "", count: int = 0) -> None:
        """Send a control message of this site."""
        self._objects.put_control(what, text, self._session, count)
        self.last_contact_s = time.time()

    def _is_of_another_process(self, data: bytes | None) -> bool:
        if data is None:
            return False
        try:
            return self._objects.open_control(data, self._site, "heartbeat").session != self._session
        except WireError:
            return False

    def _text(self) -> str:
        if self.holds is not None:
            return f"{HOLDS} {self.holds[0]} {self.holds[1]}"
        return "" if self.lacks is None else f"{LACKS} {self.lacks}"

    def _send_heartbeats(self) -> None:
        count = 0
        while not self._stopped.wait(self._objects.store.heartbeat_s):
            try:
                if self._is_of_another_process(self._objects.get_site_object(self._site, "heartbeat")):
                    self._replaced = ExchangeError(
                        f"site '{self._site}': another process has taken its place while this one was "
                        f"silent; this one stops"
                    )
                    return
                count += 1
                self.send("heartbeat", self._text(), count)
            except Exception as error:  # noqa: BLE001 - a missed heartbeat must never cost a round
                log.debug("site '%s': no heartbeat sent: %s", self._site, error)


# What the hub's state says, in its first word: the study goes on, or has ended.
OPEN, CLOSED = "open", "closed"


class HubPresence:
    """The claim of one process to run a study's hub, renewed by heartbeats until `stop`.

    A heartbeat is the study's state with the process and when it began (seconds since 1970).
    """

    def __init__(self, objects: StudyStore, run: str) -> None:
        self._objects, self._run = objects, run
        self._process, self._began = uuid.uuid4().hex, time.time()
        self._count, self._foreign = 0, 0
        self._stopped, self._sending = threading.Event(), threading.Lock()
        self._replaced: ExchangeError | None = None

    def claim(self) -> None:
        """Announce this process as the study's hub.

        Raises:
            ExchangeError: if a hub of another run of this study sends heartbeats.
        """
        first = self._objects.get_hub_object("state")
        if self._is_another_run(first):
            wait_s = OFFLINE_AFTER_HEARTBEATS * self._objects.store.heartbeat_s
            log.warning(
                "hub: looks for %g s whether a hub of an earlier run of this study still runs", wait_s
            )
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline:
                time.sleep(0.2)
                if self._is_another_run(now := self._objects.get_hub_object("state")) and now != first:
                    raise ExchangeError(
                        "another hub runs this study at this exchange now, with another run folder; "
                        "its sites would refuse this one. Stop that one first, or go on with its run "
                        "(--resume --out its run folder). Nothing of it was touched"
                    )
        self._send()

    def start(self) -> None:
        """Send heartbeats from a thread of its own until `stop`."""
        threading.Thread(target=self._send_heartbeats, name="medfed-heartbeat-hub", daemon=True).start()

    def stop(self) -> None:
        """Stop the heartbeats; none is sent once this returns."""
        self._stopped.set()
        with self._sending:
            pass

    def close(self, published: int) -> None:
        """Say that the study has ended, after so many models were published: one more than the last round."""
        self.stop()
        self._objects.put_control("state", CLOSED, self._run, published)

    def raise_if_replaced(self) -> None:
        """Raise an ExchangeError if another process has taken over this study."""
        if self._replaced is not None:
            raise self._replaced

    def _send(self) -> None:
        self._count += 1
        self._objects.put_control("state", f"{OPEN} {self._process} {self._began}", self._run, self._count)

    def _is_another_run(self, data: bytes | None) -> bool:
        state = self._opened(data)
        return bool(state) and state[0] == OPEN and state[-1] != self._run

    def _opened(self, data: bytes | None) -> list[str]:
        """Return the words of a state and the run that it is of; none if it is not the hub's."""
        if data is None:
            return []
        try:
            message = self._objects.open_control(data, HUB, "state")
        except WireError:
            return []
        return [*message.text.split(), message.session]

    def _send_heartbeats(self) -> None:
        while not self._stopped.wait(self._objects.store.heartbeat_s):
            try:
                self._look_for_another()
                with self._sending:
                    if self._replaced is None and not self._stopped.is_set():
                        self._send()
            except Exception as error:  # noqa: BLE001 - a missed heartbeat must never cost a round
                log.debug("hub: no heartbeat sent: %s", error)

    def _look_for_another(self) -> None:
        """Note if a process that began later has written the state twice in a row: it has taken over."""
        state = self._opened(self._objects.get_hub_object("state"))
        is_later = False
        with suppress(ValueError):  # an earlier medfed's state is one word
            is_later = len(state) == 4 and state[1] != self._process and float(state[2]) > self._began
        self._foreign = self._foreign + 1 if is_later else 0
        if self._foreign > 1:
            self._replaced = ExchangeError(
                "another hub of this study was started later and has taken over; this one stops, and "
                "that one goes on"
            )
