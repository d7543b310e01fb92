"""WebSocket connections to a broker through an HTTP proxy (CONNECT), for hospitals that allow nothing else.

nats-py makes its own WebSocket transport and does not support proxies, but aiohttp below it does. So each
transport that nats-py makes (one per connection) is given the proxy here. Plain NATS (`tls://`) is not
proxied: use `wss://`.
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
        self._current_transport: Any = None
        super().__init__()

    # nats-py stores its transport here and sets a new one for each connection.
    @property
    def _transport(self) -> Any:
        return self._current_transport

    @_transport.setter
    def _transport(self, transport: Any) -> None:
        if isinstance(transport, WebSocketTransport):
            transport.connect_tls = _proxied_connect(transport, self._proxy)  # type: ignore[method-assign]
        self._current_transport = transport


def _proxied_connect(transport: WebSocketTransport, proxy: str) -> Any:
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
