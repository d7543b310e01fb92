"""A site's presence: only one process may act as a site, and it sends heartbeats while it runs."""

from __future__ import annotations

import threading
import time

from medfed.errors import ExchangeError, WireError
from medfed.exchange._manifest import ControlKind
from medfed.exchange._protocol import OFFLINE_AFTER_HEARTBEATS, log
from medfed.exchange._study_store import StudyStore


class SitePresence:
    """The claim of one process to act as a site, renewed by heartbeats until `stop`."""

    def __init__(self, objects: StudyStore, session: str) -> None:
        self._objects, self._site, self._session = objects, objects.party, session
        self._stopped = threading.Event()
        self._replaced: ExchangeError | None = None
        # When the other side was last reached (seconds since 1970).
        self.last_contact_s: float | None = None

    def claim(self) -> None:
        """Announce this process as the site.

        Raises:
            ExchangeError: if another process already sends heartbeats for this site.
        """
        first = self._objects.get_site_object(self._site, "heartbeat")
        deadline = time.monotonic() + OFFLINE_AFTER_HEARTBEATS * self._objects.store.heartbeat_s
        while self._is_of_another_process(first) and time.monotonic() < deadline:
            time.sleep(0.2)
            if self._objects.get_site_object(self._site, "heartbeat") != first:
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
                self.send("heartbeat", count=count)
            except Exception as error:  # noqa: BLE001 - a missed heartbeat must never cost a round
                log.debug("site '%s': no heartbeat sent: %s", self._site, error)
