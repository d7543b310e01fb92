"""WebSocket to a broker through an HTTP proxy (CONNECT), for hospitals that let nothing else out.

nats-py makes its own WebSocket transport and knows no proxies; aiohttp, on which it rests, does. So the
transport that nats-py makes, at each connection anew, is given a proxy here. Plain NATS (`tls://`) is
not proxied: use `wss://`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import ParseResult

from nats.aio.client import Client
from nats.aio.transport import WebSocketTransport


class ProxiedClient(Client):
    """A client whose WebSocket connections go through an HTTP proxy."""

    def __init__(self, proxy: str) -> None:
        self._proxy = proxy
        self._made: Any = None
        super().__init__()

    # Where nats-py keeps its transport: it sets a new one for each connection.
    @property
    def _transport(self) -> Any:
        return self._made

    @_transport.setter
    def _transport(self, made: Any) -> None:
        if isinstance(made, WebSocketTransport):
            made.connect_tls = _through(made, self._proxy)  # type: ignore[method-assign]
        self._made = made


def _through(transport: WebSocketTransport, proxy: str) -> Any:
    async def connect_tls(
        uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        if transport._ws is not None and not transport._ws.closed:
            return
        async with asyncio.timeout(connect_timeout):
            transport._ws = await transport._client.ws_connect(
                uri if isinstance(uri, str) else uri.geturl(), ssl=ssl_context, proxy=proxy, max_msg_size=0
            )
        transport._using_tls = True

    return connect_tls
