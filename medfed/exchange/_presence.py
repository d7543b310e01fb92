"""A site's presence: only one process may act as a site, and it sends heartbeats while it runs."""

from __future__ import annotations

import threading
import time

from medfed.errors import ExchangeError, WireError
from medfed.exchange._manifest import PROTOCOL, ControlKind, ControlMessage, encode_sealed, open_control
from medfed.exchange._object_store import ObjectStore, site_control_name
from medfed.exchange._protocol import OFFLINE_AFTER_HEARTBEATS, log
from medfed.wire.signing import Seal


class SitePresence:
    """The claim of one process to act as a site, renewed by heartbeats until `stop`."""

    def __init__(self, store: ObjectStore, seal: Seal, study: str, site: str, session: str) -> None:
        self._store, self._seal, self._study, self._site, self._session = store, seal, study, site, session
        self._stopped = threading.Event()
        self._replaced: ExchangeError | None = None
        # When the other side was last reached (seconds since 1970).
        self.last_contact_s: float | None = None

    def claim(self) -> None:
        """Announce this process as the site.

        Raises:
            ExchangeError: if another process already sends heartbeats for this site.
        """
        name = site_control_name(self._study, self._site, "here")
        first = self._store.get(name)
        deadline = time.monotonic() + OFFLINE_AFTER_HEARTBEATS * self._store.heartbeat_s
        while self._is_of_another_process(first) and time.monotonic() < deadline:
            time.sleep(0.2)
            if self._store.get(name) != first:
                raise ExchangeError(
                    f"site '{self._site}' already takes part from another folder or machine; only one "
                    f"process may. If this one should replace it, stop the other first"
                )
        self.send("here")
        if self._store.get(site_control_name(self._study, self._site, "withdrawn")) is not None:
            self.send("withdrawn")

    def start(self) -> None:
        """Send heartbeats from a thread of its own until `stop`."""
        threading.Thread(
            target=self._send_heartbeats, name=f"medfed-heartbeat-{self._site}", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop the heartbeats."""
        self._stopped.set()

    def raise_if_replaced(self) -> None:
        """Raise an ExchangeError if another process has taken over this site."""
        if self._replaced is not None:
            raise self._replaced

    def send(self, what: ControlKind, text: str = "", count: int = 0) -> None:
        """Send a control message of this site."""
        message = ControlMessage(PROTOCOL, what, self._study, self._site, text, self._session, count)
        self._store.put(site_control_name(self._study, self._site, what), encode_sealed(message, self._seal))
        self.last_contact_s = time.time()

    def _is_of_another_process(self, data: bytes | None) -> bool:
        if data is None:
            return False
        try:
            message = open_control(data, self._seal, self._site, "here", self._study)
        except WireError:
            return False
        return message.session != self._session

    def _send_heartbeats(self) -> None:
        count = 0
        while not self._stopped.wait(self._store.heartbeat_s):
            try:
                if self._is_of_another_process(
                    self._store.get(site_control_name(self._study, self._site, "here"))
                ):
                    self._replaced = ExchangeError(
                        f"site '{self._site}': another process has taken its place while this one was "
                        f"silent; this one stops"
                    )
                    return
                count += 1
                self.send("here", count=count)
            except Exception as error:  # a missed heartbeat must never cost a round: the next one is tried
                log.debug("site '%s': no heartbeat sent: %s", self._site, error)
