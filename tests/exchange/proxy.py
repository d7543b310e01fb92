"""A loopback proxy that cuts, delays, limits or corrupts traffic."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Forward bytes between a free port and a server; settings may be changed while the proxy runs.

    `cut_after` ends a connection after that many uploaded bytes, `rate` limits the bytes per second in each
    direction, `delay_s` delays each piece, `corrupt_after` flips one bit after that many uploaded bytes, and
    `closed` refuses new connections and ends the existing ones.
    """

    def __init__(self, server_port: int) -> None:
        self.cut_after: int | None = None
        self.rate: float | None = None
        self.delay_s = 0.0
        self.corrupt_after: int | None = None
        self.up = 0
        self.down = 0
        self.cuts = 0
        self._server_port = server_port
        self._closed = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def closed(self) -> bool:
        return self._closed

    @closed.setter
    def closed(self, value: bool) -> None:
        self._closed = value
        if value:
            for pair in list(self._pairs):
                self._end(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._closed:
                    raise OSError
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                client.close()
                continue
            pair = (client, server)
            self._pairs.add(pair)
            threading.Thread(target=self._pass, args=(pair, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(pair, False), daemon=True).start()

    def _pass(self, pair: tuple[socket.socket, socket.socket], up: bool) -> None:
        source, target = pair if up else pair[::-1]
        passed = 0
        try:
            while data := source.recv(16384):
                passed += len(data)
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.rate:
                    time.sleep(len(data) / self.rate)
                if up:
                    self.up += len(data)
                    if self.corrupt_after is not None and passed > self.corrupt_after:
                        self.corrupt_after = None
                        data = bytes([data[0] ^ 1]) + data[1:]
                    if self.cut_after is not None and passed > self.cut_after:
                        self.cuts += 1
                        break
                else:
                    self.down += len(data)
                target.sendall(data)
        except OSError:
            pass
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for one in pair:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self.closed = True
        self._listener.close()
