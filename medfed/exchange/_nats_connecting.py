"""The broker's client: how it is made and closed, and how calls of it end where the connection failed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from medfed.exchange._nats_cluster import MIN_PATIENCE_S, Patience
from medfed.exchange._nats_refusals import LOST
from medfed.exchange._object_store import Unreachable
from medfed.wire.signing import Identity

log = logging.getLogger("medfed.exchange")

# How much the client reads at once. nats-py's default of 32 KiB costs a third more CPU time per chunk in both
# directions (60 MB: 0.25 and 0.25 s against 0.17 and 0.17); the only setting is a constant of its module.
_READ_BYTES = 1 << 20

# Bytes that may be queued before a publish waits.
_PENDING_BYTES = 64 << 20

# Ping interval and maximum outstanding pings: on a link of 1 Mbit/s an answer can wait a
# minute behind chunks.
_PING_S, _MAX_PINGS = 20, 5

# After how long without an answer to a ping a line says so.
TELL_SILENT_S = 15.0

# Pings that are answered after a request, until it is lost if it was not.
_PINGS_UNTIL_LOST = 3

_T = TypeVar("_T")


def new_client(proxy: str) -> Any:
    """Return a client that is not connected yet; through an HTTP proxy, if one is named."""
    import nats.aio.client

    nats.aio.client.DEFAULT_BUFFER_SIZE = _READ_BYTES
    if proxy:
        from medfed.exchange._http_proxy import ProxiedClient

        return ProxiedClient(proxy)
    return nats.aio.client.Client()


def connection_settings(urls: list[str], identity: Identity, connect_s: int) -> dict[str, Any]:
    """Return the client's settings for a party: any of these brokers, for ever, `connect_s` per attempt."""
    return {
        "servers": urls,
        "tls": _tls_context(identity),
        "name": identity.name,
        "allow_reconnect": True,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 1,
        "connect_timeout": connect_s,
        "ping_interval": _PING_S,
        "max_outstanding_pings": _MAX_PINGS,
        "pending_size": _PENDING_BYTES,
    }


def _tls_context(identity: Identity) -> ssl.SSLContext:
    """Return the TLS settings of a party, which trusts its federation's authority alone."""
    context = ssl.create_default_context(cafile=identity.folder / "authority.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.folder / "identity.pem", identity.folder / "identity.key")
    return context


async def discard(client: Any) -> None:
    """Close a client that could not connect."""
    await close_quietly(client.close())
    # nats-py leaves the session of a failed WebSocket connection to the garbage collector, which warns.
    session = getattr(getattr(client, "_transport", None), "_client", None)
    if session is not None:
        await close_quietly(session.close())


def checked(call: Callable[[], _T]) -> _T:
    """Return what `call` returns; a cancelled request means that the connection was lost."""
    try:
        return call()
    except (concurrent.futures.CancelledError, asyncio.CancelledError):
        raise Unreachable("the connection to the broker was lost") from None


async def run_unless(failed: asyncio.Event, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
    """Await `work` until it ends or `failed` is set.

    Raises:
        ConnectionError: if `failed` is set.
        TimeoutError: if it takes too long.
    """
    doing, failing = asyncio.ensure_future(work), asyncio.ensure_future(failed.wait())
    try:
        await asyncio.wait({doing, failing}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        elif failing.done():
            raise ConnectionError("no answer")
        else:
            raise TimeoutError
    finally:
        for task in (doing, failing):
            task.cancel()
        await asyncio.gather(doing, failing, return_exceptions=True)


async def answer_of(request: asyncio.Future[Any], client: Any, patience: Patience) -> Any:
    """Return the answer to a request that was just sent to the only broker.

    A broker may lose a request without a word, for instance while its rights change. What is sent and
    received keeps its order, however slow the link is. So after the answer to the first ping the request has
    left this machine, after that to the second the broker has it, and after that to the third the answer is
    here, unless the broker takes longer than it was given.

    Raises:
        Unreachable: if the answer can no longer come.
    """
    patience_s, before, began = patience.seconds, client.stats["reconnects"], time.monotonic()
    for _ in range(_PINGS_UNTIL_LOST):
        await asyncio.wait({request}, timeout=patience_s / 2)
        # Not `flush`: nats-py stops reading when a ping is answered whose wait was given up.
        ping: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if client.is_connected and not request.done():
            await client._send_ping(ping)
        asked = time.monotonic()
        while not (request.done() or ping.done() or client.stats["reconnects"] > before):
            pause_s = min(1.0, TELL_SILENT_S)
            await asyncio.wait({request, ping}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if time.monotonic() - asked >= TELL_SILENT_S and not request.done() and not ping.done():
                patience.tell_silent()
    if request.done():
        answer = request.result()
        # The pings measure a slow link; so a long wait says little of the broker.
        patience.answered(min(time.monotonic() - began, MIN_PATIENCE_S))
        return answer
    patience.lost(patience_s)
    raise Unreachable(LOST)


async def close_quietly(closing: Coroutine[Any, Any, None]) -> None:
    try:
        await asyncio.wait_for(closing, 2.0)
    except Exception as error:  # noqa: BLE001 - closing must not fail
        log.debug("an unfinished connection could not be closed: %s", error)
