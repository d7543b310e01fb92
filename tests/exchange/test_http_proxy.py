"""A hospital behind a firewall that only allows HTTP through its proxy uses WebSocket by CONNECT."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
import torch

from medfed.errors import ExchangeError
from medfed.exchange.nats import Nats
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, digest

STUDY = "56" * 32


class ConnectProxy:
    """An HTTP proxy on loopback that supports only CONNECT and records the requested hosts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        verb, place, _ = head.split(b"\r\n")[0].decode().split()
        self.asked.append(f"{verb} {place}")
        host, _, port = place.rpartition(":")
        try:
            server = socket.create_connection((host, int(port)))
        except OSError:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            client.close()
            return
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._open += [client, server]
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self.cut(source, target)

    def cut(self, *sockets: socket.socket) -> None:
        for one in sockets or tuple(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def proxy():
    started = ConnectProxy()
    yield started
    started.close()


def test_a_hospital_behind_an_http_proxy_takes_part(enrolment, tmp_path, proxy):
    enrolment.start()
    weights = {"a": torch.arange(600_000.0)}
    credentials = {name: str(enrolment.credentials(name)) for name in ("hub", "north")}
    hub = Nats(credentials=credentials["hub"], urls=[enrolment.url]).open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, weights, study_digest=STUDY))
    # The kit lists tls:// first; it is skipped, because a proxy carries only WebSocket.
    north = Nats(credentials=credentials["north"], proxy=proxy.url).open_site(
        STUDY, "north", tmp_path / "north"
    )
    try:
        assert digest(north.fetch("north", 0).weights) == digest(weights)
        place = f"CONNECT 127.0.0.1:{enrolment.websocket_port}"
        assert set(proxy.asked) == {place}
        before = len(proxy.asked)
        proxy.cut()  # the next connection goes through the proxy too
        north.send(Update("north", 1, Difference({"a": weights["a"] + 1}, weights), 3))
        (arrival,) = hub.collect(1, ["north"], 60)
        assert arrival.error is None
        assert torch.equal(arrival.update.delta.minuend["a"], weights["a"] + 1)
        assert len(proxy.asked) > before
        assert set(proxy.asked) == {place}
    finally:
        north.close()
        hub.close()


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"proxy": "https://proxy:3128"},
            r"exchange\.proxy: 'https://proxy:3128': an HTTP proxy is given as http://",
        ),
        (
            {"proxy": "http://proxy:3128", "urls": ["tls://hub:4222"]},
            "reaches a broker only by wss://; there is no such",
        ),
    ],
)
def test_a_proxy_that_cannot_serve_is_refused(enrolment, settings, message):
    with pytest.raises(ExchangeError, match=message):
        Nats(credentials=str(enrolment.credentials("north")), **settings).offered_studies("north")
