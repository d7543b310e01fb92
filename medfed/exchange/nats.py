"""Sites and hub meet at a NATS JetStream broker: mutual TLS, an account a site, outbound connections only.

The protocol needs two requests of the broker, publish and direct get; no consumers, no key-value and no
object store. Names become subjects: `up/<study>/<site>/...` is stored in the stream `UP_<site>`,
`glob/<study>/...` in `GLOB`. The connection lives in a thread of its own, with its own asyncio loop, beside
Lightning's. It is made again for ever.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec

from medfed.errors import ExchangeError
from medfed.exchange._concurrency import run_bounded
from medfed.exchange._exchange import Exchange
from medfed.exchange._hub_transport import HubTransport
from medfed.exchange._object_store import Buffer, MissingObject, ObjectStore, Parts, Unreachable
from medfed.exchange._protocol import wait_for_study
from medfed.exchange._site_transport import SiteTransport
from medfed.wire.signing import HUB, Identity, serial_number

log = logging.getLogger("medfed.exchange")


class Nats(Exchange, frozen=True, tag="nats"):
    """A NATS JetStream broker: mutual TLS, one account a site, outbound connections only, port
    443 if need be.

    `credentials` is the folder of this party's key and certificate (`medfed enrol`). `urls` are tried in turn
    (`tls://host:4222`, `wss://host:443`); by default those of the kit. `proxy` is an HTTP proxy
    (`http://proxy.hospital.example:3128`), by whose CONNECT the `wss` ones are reached.
    """

    credentials: str = ""
    urls: list[str] = []  # noqa: RUF012
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    proxy: str = ""

    def open_hub(self, study: str, folder: Path) -> HubTransport:
        identity = self._identity()
        if identity.name != HUB:
            raise ExchangeError(
                f"exchange.credentials: they are those of '{identity.name}'; the hub needs those in the folder 'hub' that "
                f"`medfed enrol init` made"
            )
        return HubTransport(self._store(study, identity), identity, study, folder)

    def open_site(self, study: str, site: str, folder: Path) -> SiteTransport:
        identity = self._identity()
        if identity.name != site:
            raise ExchangeError(
                f"exchange.credentials: they are those of '{identity.name}', this is site '{site}'"
            )
        return SiteTransport(self._store(study, identity), identity, study, site, folder)

    def advertised_study(self) -> tuple[str, str]:
        identity = self._identity()
        store = self._store("newest", identity)
        try:
            return wait_for_study(store, identity)
        finally:
            store.close()

    def _identity(self) -> Identity:
        if not self.credentials:
            raise ExchangeError(
                "exchange.credentials is missing: `nats` needs the folder that `medfed enrol` made"
            )
        return Identity(Path(self.credentials)).check()

    def _store(self, study: str, identity: Identity) -> ObjectStore:
        from medfed.wire.credentials import broker_urls

        urls = self.urls or broker_urls(identity.folder)
        if self.proxy:
            urls = [url for url in urls if url.startswith("wss://")]
            if not self.proxy.startswith("http://") or not urls:
                raise ExchangeError(
                    f"exchange.proxy: '{self.proxy}': an HTTP proxy is named as http://host:port, and reaches a broker by "
                    f"wss:// alone; there {'is no such url' if not urls else 'is one'} in exchange.urls or the kit"
                )
        return NatsStore(urls, identity, study, self.timeout_s, self.proxy)


# In the order in which they are tried.
_SCHEMES = ("tls://", "wss://")

# Chunks under way at once. Measured under TLS on two cores: 1 MiB and 8 give 228 MB/s up and 133 MB/s down,
# one at a time with 128 KiB 90 and 87.
_WINDOW = 8

# How much the client reads at once. nats-py's own 32 KiB cost a third more of the processor a chunk, up and
# down (60 MB: 0.25 and 0.25 s against 0.17 and 0.17); it has no setting for it but its module's constant.
_READ_BYTES = 1 << 20

# Bytes that may wait to be sent before a publish waits for room.
_PENDING_BYTES = 64 << 20

# How often the connection is asked whether it lives, and how many answers may be missing: on a link of 1
# Mbit/s an answer can wait a minute behind chunks.
_PING_S, _PINGS = 20, 5

# How long a call waits for a lost connection before it says so; the caller tries again.
_CONNECT_S = 10.0

# JetStream's error for a first-write-wins message whose subject holds one already.
_WRONG_LAST_SEQUENCE = 10071
_ALREADY_OTHERWISE = 10058


class NatsStore:
    """A store at a NATS JetStream broker."""

    chunk_bytes = 1 << 20
    heartbeat_s = 2.0
    channel = "over NATS"

    def __init__(
        self, urls: Sequence[str], identity: Identity, study: str, timeout_s: float = 120.0, proxy: str = ""
    ) -> None:
        for url in urls:
            if not url.startswith(_SCHEMES):
                raise ExchangeError(f"exchange.urls: '{url}' begins with none of {', '.join(_SCHEMES)}")
        self._urls, self._identity, self._timeout_s = list(urls), identity, timeout_s
        self._proxy = proxy
        self._is_hub = identity.name == HUB
        self._space = study[:16] or "none"
        self._streams: set[str] = set()
        self._changed = threading.Event()
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._refused = self._last_error = ""
        self._under_way: set[asyncio.Task[Any]] = set()
        self._failures, self._failed = 0, asyncio.Event()
        _quiet_asyncio()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="medfed-nats", daemon=True)
        self._thread.start()
        # The thread has to end before Python does.
        atexit.register(self.close)

    # -- the store

    def put(self, name: str, data: Buffer, once: bool = False) -> None:
        self._result(self._begin(self._put(name, data, once)))

    def get(self, name: str) -> bytes | None:
        return self._result(self._begin(self._get(name)))

    def put_many(self, pieces: Iterable[tuple[str, Parts]], stored: Callable[[str], None]) -> None:
        jobs = ((name, partial(self._begin_put, name, b"".join(parts))) for name, parts in pieces)
        self._checked(lambda: run_bounded(jobs, lambda name, _: stored(name), _WINDOW, first=2))

    def get_many(self, names: Sequence[str], take: Callable[[str, Buffer], None], skip: bool = False) -> None:
        def got(name: str, data: bytes | None) -> None:
            if data is None:
                if skip:
                    return
                raise MissingObject(f"chunk {name.rpartition('/')[2].partition('-')[0]} is not at the broker")
            take(name, data)

        jobs = ((name, lambda name=name: self._begin(self._get(name))) for name in names)
        self._checked(lambda: run_bounded(jobs, got, _WINDOW, first=2))

    def delete_rounds(self, study: str, before: int) -> None:
        # An update that came too late lies in a round that was cleared already, so the rounds before
        # are cleared again.
        for round in range(max(0, before - 2), before + 1):
            for stream in self._sites():
                site = stream.removeprefix("UP_")
                self._purge(stream, f"up.{self._space}.{site}.r{round:05d}.>")
            if round > 0:
                self._purge("GLOB", f"glob.{self._space}.r{round - 1:05d}.>")

    def delete_study(self, study: str) -> None:
        for stream in self._sites():
            self._purge(stream, f"up.{self._space}.>")
        self._purge("GLOB", f"glob.{self._space}.>")

    def wait(self, timeout_s: float) -> None:
        # A message wakes it; that nothing was missed is polling's to see.
        self._changed.wait(min(timeout_s, 1.0))
        self._changed.clear()

    def close(self) -> None:
        atexit.unregister(self.close)
        if not self._thread.is_alive():
            return

        async def end() -> None:
            if self._client is not None:
                await self._client.close()
            # What still tries to connect would be told of by asyncio as a task that was destroyed.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        try:
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        except Exception as error:
            log.debug("closing the connection to the broker: %s", error)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    # -- requests, in the loop's thread

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _begin_put(self, name: str, data: Buffer) -> Future[Any]:
        return self._begin(self._put(name, data, False))

    def _result(self, future: Future[Any]) -> Any:
        return self._checked(future.result)

    def _checked(self, call: Callable[[], Any]) -> Any:
        import concurrent.futures

        try:
            return call()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise Unreachable("the connection to the broker was lost") from None

    async def _put(self, name: str, data: Buffer, once: bool) -> None:
        subject = name.replace("/", ".")
        await self._ensure_stream(name)
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"} if once else None
        answer = json.loads((await self._request(subject, bytes(data), headers)).data)
        error = answer.get("error")
        if error and not (once and error.get("err_code") == _WRONG_LAST_SEQUENCE):
            raise Unreachable(f"the broker did not store it: {error.get('description', 'no reason given')}")

    async def _get(self, name: str) -> bytes | None:
        await self._ensure_stream(name)
        answer = await self._request(_getting(name), b"", None)
        status = (answer.headers or {}).get("Status")
        if status == "404":
            return None
        if status is not None:
            raise Unreachable(f"the broker answers {status}: {(answer.headers or {}).get('Description', '')}")
        return answer.data

    async def _request(self, subject: str, data: bytes, headers: dict[str, str] | None) -> Any:
        import nats.errors

        client = await self._connected()
        task = asyncio.ensure_future(client.request(subject, data, self._timeout_s, headers=headers))
        self._under_way.add(task)
        try:
            return await task
        except nats.errors.NoRespondersError:
            raise Unreachable(
                "the broker knows no such place yet: the hub has not been started, or this site is not enrolled there"
            ) from None
        except nats.errors.Error as error:
            raise Unreachable(f"the broker did not answer: {_plain(error)}") from None
        finally:
            self._under_way.discard(task)

    # -- the connection

    async def _connected(self) -> Any:
        until = time.monotonic() + _CONNECT_S
        while True:
            if self._client is not None and self._client.is_connected:
                return self._client
            if self._client is None or self._client.is_closed:
                self._client = None
                await self._connect()
                continue
            if time.monotonic() > until:
                raise self._unreachable()
            await asyncio.sleep(0.02)

    async def _connect(self) -> None:
        async with self._connecting:
            if self._client is not None:
                return
            # The client takes servers of one kind only: NATS over TLS is tried before WebSocket.
            for scheme in _SCHEMES:
                urls = [url for url in self._urls if url.startswith(scheme)]
                if urls and await self._connect_to(urls):
                    return
            raise self._unreachable()

    def _unreachable(self) -> Unreachable:
        where = f"no connection to the broker at {', '.join(self._urls)}"
        if self._refused:
            return Unreachable(f"{where}: {self._refused}")
        return Unreachable(
            f"{where}: {self._last_error or 'no answer'}; does the broker run there (`medfed hub --broker`), and does each "
            f"firewall between let that port through?"
        )

    def _new_client(self) -> Any:
        import nats.aio.client

        nats.aio.client.DEFAULT_BUFFER_SIZE = _READ_BYTES
        if self._proxy:
            from medfed.exchange._http_proxy import ProxiedClient

            return ProxiedClient(self._proxy)
        return nats.aio.client.Client()

    async def _connect_to(self, urls: list[str]) -> bool:
        client = self._new_client()
        self._refused = self._last_error = ""
        self._failures, self._failed = len(urls), asyncio.Event()
        try:
            await _unless(
                self._failed,
                client.connect(
                    servers=urls,
                    tls=self._tls(),
                    name=self._identity.name,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    connect_timeout=int(_CONNECT_S),
                    ping_interval=_PING_S,
                    max_outstanding_pings=_PINGS,
                    pending_size=_PENDING_BYTES,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._woken,
                    error_cb=self._told,
                ),
                _CONNECT_S,
            )
            await self._listen(client)
        except Exception as error:
            await _quietly(client.close())
            # nats-py leaves the session of a WebSocket that was not made to the garbage
            # collector, which complains.
            session = getattr(getattr(client, "_transport", None), "_client", None)
            if session is not None:
                await _quietly(session.close())
            self._last_error = self._last_error or _plain(error)
            return False
        self._client = client
        return True

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._identity.folder / "authority.pem")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(
            self._identity.folder / "identity.pem", self._identity.folder / "identity.key"
        )
        return context

    async def _listen(self, client: Any) -> None:
        async def heard(message: Any) -> None:
            if not message.subject.endswith(".here.m"):
                self._changed.set()

        await client.subscribe(
            f"up.{self._space}.*.*.m" if self._is_hub else f"glob.{self._space}.*.m", cb=heard
        )

    async def _disconnected(self) -> None:
        # What is under way would wait for its whole timeout, although its answer can't come any more.
        for task in list(self._under_way):
            task.cancel()
        self._streams.clear()

    async def _woken(self) -> None:
        self._changed.set()

    async def _told(self, error: Exception) -> None:
        text = self._last_error = _plain(error) or type(error).__name__
        # Where every address was tried once it is said; the client alone would go on trying without a word.
        self._failures -= 1
        if self._failures == 0:
            self._failed.set()
        self._refused = _refusal(text, self._identity) or self._refused
        log.debug("broker: %s", text)

    # -- the hub's streams

    def _sites(self) -> list[str]:
        path = self._identity.folder / "sites.txt"
        sites = path.read_text().split() if path.exists() else []
        return [f"UP_{site}" for site in sites]

    async def _ensure_stream(self, name: str) -> None:
        if self._is_hub and _stream(name) not in self._streams:
            await self._create(_stream(name))

    async def _create(self, stream: str) -> None:
        subjects = ["glob.>"] if stream == "GLOB" else [f"up.*.{stream.removeprefix('UP_')}.>"]
        settings = {
            "name": stream,
            "subjects": subjects,
            "retention": "limits",
            "storage": "file",
            "max_msgs_per_subject": 1,
            "discard": "old",
            "allow_direct": True,
            "num_replicas": 1,
        }
        answer = await self._asked(f"STREAM.CREATE.{stream}", settings)
        if answer.get("error", {}).get("err_code") == _ALREADY_OTHERWISE:
            answer = await self._asked(f"STREAM.UPDATE.{stream}", settings)
        if "error" in answer:
            raise Unreachable(
                f"the broker made no place for '{stream}': {answer['error'].get('description')}"
            )
        self._streams.add(stream)

    def _purge(self, stream: str, subjects: str) -> None:
        async def purge() -> None:
            if stream not in self._streams:
                await self._create(stream)
            answer = await self._asked(f"STREAM.PURGE.{stream}", {"filter": subjects})
            if "error" in answer:
                raise Unreachable(
                    f"the broker did not clear '{stream}': {answer['error'].get('description')}"
                )

        self._result(self._begin(purge()))

    async def _asked(self, what: str, settings: dict[str, Any]) -> dict[str, Any]:
        return json.loads((await self._request(f"$JS.API.{what}", json.dumps(settings).encode(), None)).data)


def _stream(name: str) -> str:
    parts = name.split("/")
    return "GLOB" if parts[0] == "glob" else f"UP_{parts[2]}"


def _getting(name: str) -> str:
    """Return the subject of a request for a piece."""
    return f"$JS.API.DIRECT.GET.{_stream(name)}.{name.replace('/', '.')}"


def _refusal(text: str, identity: Identity) -> str:
    """Return in words what TLS or the broker said where one side does not take the
    other's certificate, or nothing.
    """
    lower = text.lower()
    if "certificate verify failed" in lower:
        reason = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or text
        if "expired" in lower:
            return f"the broker's own certificate does not hold any more ({reason}); the coordinator has to renew it"
        if "mismatch" in lower:
            return (
                f"who answers there is not named so ({reason}); take an address that the coordinator gave to `medfed enrol "
                f"init --host`"
            )
        return (
            f"who answers is not of the federation of '{identity.name}' ({reason}): it is another federation's broker, or "
            f"something between that opens TLS; compare the address, and the authority's fingerprint, with the coordinator"
        )
    if any(said in lower for said in ("authorization", "bad certificate", "unknown ca", "expired")):
        until = identity.certificate.not_valid_after_utc
        return (
            f"the broker does not let '{identity.name}' in ({text}): its certificate ({serial_number(identity.certificate)}, "
            f"until {until:%Y-%m-%d}) is expired, revoked or of another federation; ask the coordinator, whom `medfed enrol "
            f"list` tells which"
        )
    return ""


def _quiet_asyncio() -> None:
    # asyncio's TLS says this at each end of a connection that its stream reader could have kept half open.
    logging.getLogger("asyncio").addFilter(_no_eof_note)


def _no_eof_note(record: logging.LogRecord) -> bool:
    return "returning true from eof_received" not in record.msg


async def _unless(failed: asyncio.Event, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
    """Do some work, in time and unless it is said to have failed.

    Raises:
        ConnectionError: if it has.
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
        for one in (doing, failing):
            one.cancel()
        await asyncio.gather(doing, failing, return_exceptions=True)


async def _quietly(ending: Coroutine[Any, Any, None]) -> None:
    try:
        await asyncio.wait_for(ending, 2.0)
    except Exception as error:
        log.debug("a connection that was not made does not close: %s", error)


def _plain(error: Exception) -> str:
    # A certificate's errors are OSErrors, too, with a number of their own.
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)  # asyncio's own text is "Connect call failed ('10.0.0.1', 4222)"
    return str(error).split("\n")[0][:200]
