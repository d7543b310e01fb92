"""A second connection to the broker, for chunks alone: NATS's own text protocol over a blocking TLS socket.

nats-py carries everything else. It copies a received message some five times on its way through asyncio's streams and its
own parser. A blocking socket reads a chunk into the memory that is hashed, and sends one from the memory that it lies in:
105 MB under TLS cost 0.11 s of processor down and 0.10 up instead of 0.39 and 0.25, and the server a fifth less.
A connection that breaks is not mended here: the call raises `Unreachable`, and the caller repeats it, as for every depot.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, TypeVar
from urllib.parse import urlparse

from medfed.exchange._depot import Missing, Unreachable
from medfed.exchange._window import SLOW_S

_T = TypeVar("_T")

# A connection that was not used for this long is made anew: nobody answered the server's pings meanwhile, and after two
# of them (2 minutes apart) it closes the connection.
IDLE_S = 60.0

# How much is read at once where a line is sought; a chunk's bytes are read straight to where they belong.
_READ_BYTES = 16 << 10

_KEEPALIVE_S = 20


class Bulk:
    """Chunks to and from the broker, a window of them under way at once. One thread at a time may use it."""

    def __init__(
        self, url: str, tls: ssl.SSLContext, name: str, timeout_s: float, connect_s: float, window: int
    ) -> None:
        self.url, self._timeout_s, self._window = url, timeout_s, window
        self._inbox = f"_INBOX.{token_hex(11)}"
        self._held, self._at = b"", 0
        self._next = 0
        where = urlparse(url)
        assert where.hostname is not None
        try:
            plain = socket.create_connection((where.hostname, where.port or 4222), connect_s)
        except OSError as error:
            raise Unreachable(f"no connection to the broker at {url}: {error.strerror or error}") from None
        self._socket: socket.socket = plain
        try:
            self._open(plain, tls, where.hostname, name)
            self._socket.settimeout(timeout_s)
        except (OSError, ValueError) as error:
            self.close()
            raise Unreachable(f"the broker at {url} ended the connection: {error}") from None
        except BaseException:
            self.close()
            raise
        self.used_s = time.monotonic()

    @property
    def fresh(self) -> bool:
        """Whether the connection was used a moment ago, so that the server still keeps it."""
        return time.monotonic() - self.used_s < IDLE_S

    def close(self) -> None:
        """Let go of the connection."""
        self.used_s = float("-inf")
        with suppress(OSError):
            self._socket.close()

    def put_many(
        self, pieces: Iterable[tuple[str, str, bytes | memoryview]], stored: Callable[[str], None]
    ) -> None:
        """Store pieces (name, subject, content), calling `stored` with the name of each that the broker holds.

        Raises:
            Unreachable: if the connection breaks, or the broker refuses one.
        """

        def answered(name: str, header: bytes, body: memoryview) -> None:
            found = {} if header else self._or_lost(lambda: json.loads(bytes(body)))
            if "error" in found or "seq" not in found:
                said = found.get("error", {}).get("description") or _status(header) or "no reason given"
                raise Unreachable(f"the broker did not store it: {said}")
            stored(name)

        self._through(((name, subject, data) for name, subject, data in pieces), answered)

    def get_many(self, names: Sequence[tuple[str, str]], take: Callable[[str, memoryview], None]) -> None:
        """Hand each piece (name, subject of the request) to `take`; its memory is used again after that.

        Raises:
            Unreachable: if the connection breaks, or the broker does not answer with the piece.
            Missing: if it says that there is none.
        """

        def answered(name: str, header: bytes, body: memoryview) -> None:
            status = _status(header)
            if status.startswith("404"):
                raise Missing(f"chunk {name.rpartition('/')[2].partition('-')[0]} is not at the broker")
            if status:
                raise Unreachable(f"the broker answers {status}")
            take(name, body)

        self._through(((name, subject, b"") for name, subject in names), answered)

    # -- a window of requests

    def _through(
        self,
        requests: Iterable[tuple[str, str, bytes | memoryview]],
        answered: Callable[[str, bytes, memoryview], None],
    ) -> None:
        # It begins with two at once, one more after each quick answer, half after a slow one: as through_window does.
        under_way: dict[int, tuple[str, float]] = {}
        width = 2
        room = bytearray()

        def take_one() -> None:
            nonlocal width, room
            number, header, body, room = self._or_lost(lambda: self._answer(room))
            if number not in under_way:
                return
            name, began = under_way.pop(number)
            answered(name, header, body)
            width = min(self._window, width + 1) if time.monotonic() - began < SLOW_S else max(1, width // 2)

        try:
            for number, (name, subject, data) in enumerate(requests, self._next):
                self._next = number + 1
                while len(under_way) >= width:
                    take_one()
                under_way[number] = (name, time.monotonic())
                head = f"PUB {subject} {self._inbox}.{number} {len(data)}\r\n".encode()
                self._or_lost(lambda: self._send(head, data, b"\r\n"))  # noqa: B023
            while under_way:
                take_one()
        except BaseException:
            # The broker's, or the caller's own disk's: answers under way would come between those of the next call.
            self.close()
            raise
        self.used_s = time.monotonic()

    def _or_lost(self, call: Callable[[], _T]) -> _T:
        """Return what a call on the connection returns; that it was lost is no error of this party's own disk."""
        try:
            return call()
        except (OSError, ValueError) as error:
            said = "no answer in time" if isinstance(error, TimeoutError) else _plain(error)
            raise Unreachable(f"the connection to the broker was lost: {said}") from None

    # -- the protocol: docs.nats.io, reference, client protocol

    def _open(self, plain: socket.socket, tls: ssl.SSLContext, host: str, name: str) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        # The server speaks first, in the clear, and then only by TLS. Byte by byte, since what follows is TLS's.
        greeting = b""
        while not greeting.endswith(b"\r\n"):
            byte = plain.recv(1)
            if not byte or len(greeting) > 1 << 16:
                raise Unreachable("the broker ended the connection before its greeting")
            greeting += byte
        if not greeting.startswith(b"INFO "):
            raise Unreachable("what answers there is no NATS server")
        self._socket = tls.wrap_socket(plain, server_hostname=host)
        options: dict[str, Any] = {"verbose": False, "pedantic": False, "tls_required": True, "headers": True}
        options |= {"no_responders": True, "name": name, "lang": "python", "version": "medfed", "protocol": 1}
        text = json.dumps(options)
        self._send(f"CONNECT {text}\r\nSUB {self._inbox}.* 1\r\nPING\r\n".encode())
        while self._control() != b"PONG":
            pass

    def _send(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            if len(part):
                self._socket.sendall(part)

    def _answer(self, room: bytearray) -> tuple[int, bytes, memoryview, bytearray]:
        """Return the number, headers and content of the next answer, its content in `room` or in a larger one."""
        while True:
            words = self._control().split()
            if words[:1] == [b"MSG"] and len(words) == 4:
                length, total = 0, int(words[3])
            elif words[:1] == [b"HMSG"] and len(words) == 5:
                length, total = int(words[3]), int(words[4])
            else:
                continue
            header = bytes(self._exactly(memoryview(bytearray(length))))
            if len(room) < total - length:
                room = bytearray(total - length)
            body = self._exactly(memoryview(room)[: total - length])
            self._exactly(memoryview(bytearray(2)))
            return int(words[1].rpartition(b".")[2]), header, body, room

    def _control(self) -> bytes:
        """Return the next line that is none of the server's own questions."""
        while True:
            line = self._line()
            if line == b"PING":
                self._send(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise Unreachable(f"the broker refuses: {line[4:].decode(errors='replace').strip()[:200]}")
            else:
                return line

    def _line(self) -> bytes:
        while (end := self._held.find(b"\r\n", self._at)) < 0:
            more = self._socket.recv(_READ_BYTES)
            if not more:
                raise ConnectionResetError("it ended")
            self._held, self._at = self._held[self._at :] + more, 0
        line, self._at = self._held[self._at : end], end + 2
        return line

    def _exactly(self, into: memoryview) -> memoryview:
        """Fill that memory with what comes next."""
        done = min(len(into), len(self._held) - self._at)
        into[:done] = self._held[self._at : self._at + done]
        self._at += done
        while done < len(into):
            read = self._socket.recv_into(into[done:])
            if read == 0:
                raise ConnectionResetError("it ended")
            done += read
        return into


def _status(header: bytes) -> str:
    """Return what the first line of NATS's headers says beside its version: nothing, or `404 Message Not Found`."""
    return header.partition(b"\r\n")[0].removeprefix(b"NATS/1.0").decode(errors="replace").strip()[:200]


def _plain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0][:200] or type(error).__name__
