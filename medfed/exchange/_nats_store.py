"""An object store at a NATS JetStream broker.

The protocol needs two requests of the broker, publish and direct get; no consumers, no key-value and no
object store. Names become subjects: `up/<study>/<site>/...` is stored in the stream `UP_<site>`,
`glob/<study>/...` in `GLOB`. The connection lives in a thread of its own, and reconnects forever.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from medfed.errors import ExchangeError
from medfed.exchange import _nats_cluster as cluster
from medfed.exchange._admitted import record_admitted
from medfed.exchange._concurrency import run_bounded
from medfed.exchange._nats_connecting import (
    answer_of,
    checked,
    close_quietly,
    connection_settings,
    discard,
    new_client,
    run_unless,
)
from medfed.exchange._nats_refusals import (
    DENIED,
    DOES_IT_RUN,
    NO_STREAM,
    explain_refusal,
    first_line,
    no_more_stored,
    no_rights,
    silence_asyncio,
)
from medfed.exchange._nats_streams import (
    FIRST_SITE_BYTES,
    GLOBAL,
    MIN_SITE_BYTES,
    ROOM,
    no_room,
    shrunk,
    stream_of,
    stream_settings,
)
from medfed.exchange._object_store import Buffer, Parts, Refused, Unreachable, pass_on
from medfed.exchange._study_store import OFFERS, space_of
from medfed.wire.credentials import BROKERS_FILE
from medfed.wire.signing import HUB, SITE, Identity, role_of

log = logging.getLogger("medfed.exchange")

_T = TypeVar("_T")

# URL schemes, in the order in which they are tried.
_SCHEMES = ("tls://", "wss://")

# Chunks transferred at once, and how many at first. Measured under TLS on two cores: 8 chunks of 1 MiB give
# 228 MB/s up and 133 MB/s down, one of 128 KiB at a time 90 and 87.
_MAX_TRANSFERS, _INITIAL_TRANSFERS = 8, 2

# How long a call waits for a lost connection before it raises `Unreachable`; the caller tries again.
_CONNECT_S = 10.0

# JetStream's error codes: a first-write-wins message on a subject that has one, a stream that exists with
# other settings, and one that does not exist; and a disk that is too small for what the streams may store
# together, which a cluster says in words alone.
_WRONG_LAST_SEQUENCE = 10071
_STREAM_EXISTS, _NO_STREAM = 10058, 10059
_NO_ROOM = 10047
_NO_ROOM_TEXT = "insufficient storage"


class _NoRoom(Unreachable):
    """The broker's disk has no room to reserve what a stream may store."""


class NatsStore:
    """An object store at a NATS JetStream broker."""

    chunk_bytes = 1 << 20
    heartbeat_s = 2.0
    settle_s = 0.0
    description = "over NATS"

    def __init__(
        self, urls: Sequence[str], identity: Identity, digest: str, timeout_s: float = 120.0, proxy: str = ""
    ) -> None:
        for url in urls:
            if not url.startswith(_SCHEMES):
                raise ExchangeError(f"exchange.urls: '{url}' begins with none of {', '.join(_SCHEMES)}")
        self._urls, self._identity, self._timeout_s, self._proxy = list(urls), identity, timeout_s, proxy
        self._is_hub = identity.name == HUB
        self._digest = digest
        self._study = digest if digest.startswith(OFFERS) else space_of(digest)
        self._streams: set[str] = set()
        self._is_cluster = False  # as the first connection tells
        self._patience = cluster.Patience(timeout_s, "hub" if self._is_hub else f"site '{identity.name}'")
        self._seen = cluster.Seen()
        self._unreached = cluster.Unreached()
        # What each site should be able to store, and its share if the broker's disk has less.
        self._wanted_bytes = self._site_bytes = FIRST_SITE_BYTES
        self._creating = asyncio.Lock()
        self._told: set[str] = set()
        self._changed = threading.Event()
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._refusal = self._last_error = ""
        # The requests that wait for an answer, with their subjects, and those that the broker refused.
        self._requests: dict[asyncio.Task[Any], str] = {}
        self._denied: set[asyncio.Task[Any]] = set()
        self._failures, self._failed = 0, asyncio.Event()
        silence_asyncio()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="medfed-nats", daemon=True)
        self._thread.start()
        # The thread must end before the interpreter does.
        atexit.register(self.close)

    # -- the object store

    def put(self, name: str, data: Buffer, if_absent: bool = False) -> None:
        self._run(self._put, name, data, if_absent)

    def get(self, name: str) -> bytes | None:
        return self._run(self._get, name)

    def put_many(self, objects: Iterable[tuple[str, Parts]], on_stored: Callable[[str], None]) -> None:
        jobs = ((name, partial(self._start, self._put, name, b"".join(parts))) for name, parts in objects)
        checked(
            lambda: run_bounded(jobs, lambda name, _: on_stored(name), _MAX_TRANSFERS, _INITIAL_TRANSFERS)
        )

    def get_many(
        self, names: Sequence[str], on_object: Callable[[str, Buffer], None], skip_missing: bool = False
    ) -> None:
        jobs = ((name, partial(self._start, self._get, name)) for name in names)
        on_done = pass_on(on_object, skip_missing)
        checked(lambda: run_bounded(jobs, on_done, _MAX_TRANSFERS, _INITIAL_TRANSFERS))

    def delete_update(self, prefix: str) -> None:
        self._run(self._purge, stream_of(prefix), f"{prefix.replace('/', '.')}.>")

    def delete_rounds(self, study_digest: str, before: int, updates: bool = True) -> None:
        # A late update is in a round that was cleared already, so the rounds before are cleared again.
        for round in range(max(0, before - 2), before + 1):
            for site in self._sites() if updates else ():
                self._run(self._purge, f"UP_{site}", f"up.{self._study}.{site}.r{round:05d}.>")
            if round > 0:
                self._run(self._purge, "GLOB", f"glob.{self._study}.r{round - 1:05d}.>")

    def delete_study(self, study_digest: str) -> None:
        for site in self._sites():
            self._run(self._purge, f"UP_{site}", f"up.{self._study}.>")
        self._run(self._purge, "GLOB", f"glob.{self._study}.>")

    def limit_sites(self, max_bytes: int) -> tuple[str, ...]:
        self._wanted_bytes = max(self._wanted_bytes, max_bytes)
        if self._wanted_bytes > self._site_bytes:
            self._site_bytes = self._wanted_bytes
            self._streams -= {stream for stream in self._streams if stream != "GLOB"}
        sites = self._sites()
        self._run(self._ensure_stream, "room")
        for site in sites:
            self._run(self._ensure_stream, f"up/{self._study}/{site}")
        deleted = []
        for stream in self._run(self._stored):
            site = stream.removeprefix("UP_")
            if sites and stream != site and site not in sites:
                deleted.append(f"what '{site}' stored at the broker is deleted: it is no longer enrolled")
                self._run(self._change_stream, "DELETE", stream, {})
                self._streams.discard(stream)
        return tuple(deleted)

    def admit(self, sites: Iterable[str]) -> None:
        # Where the enrolment is on another machine, its coordinator does (`medfed enrol study`).
        enrolment = self._identity.folder.parent
        if self._is_hub and (enrolment / "federation.json").exists():
            record_admitted(enrolment, self._digest, sites)

    def used_bytes(self) -> dict[str, int]:
        stored = self._run(self._stored)
        return {name.removeprefix("UP_"): size for name, size in stored.items() if name.startswith("UP_")}

    def offline_brokers(self) -> tuple[str, ...]:
        """Return the names of a cluster's brokers that the others do not reach; () for one broker."""
        info = self._run(self._info, GLOBAL)
        members = (info.get("cluster") or {}).get("replicas") or ()
        return self._unreached.names(members)

    def wait(self, timeout_s: float) -> None:
        # A message wakes it up; polling makes sure that none is missed.
        self._changed.wait(min(timeout_s, 1.0))
        self._changed.clear()

    def close(self) -> None:
        atexit.unregister(self.close)
        if not self._thread.is_alive():
            return

        async def end() -> None:
            if self._client is not None:
                await self._client.close()
            # asyncio would report a pending attempt to connect as a destroyed task.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        try:
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        except Exception as error:  # noqa: BLE001 - closing must not fail
            log.debug("closing the connection to the broker: %s", error)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    # -- requests, in the loop's thread

    def _start(
        self, request: Callable[..., Coroutine[Any, Any, _T]], *arguments: Any
    ) -> concurrent.futures.Future[_T]:
        return asyncio.run_coroutine_threadsafe(request(*arguments), self._loop)

    def _run(self, request: Callable[..., Coroutine[Any, Any, _T]], *arguments: Any) -> _T:
        return checked(self._start(request, *arguments).result)

    async def _put(self, name: str, data: Buffer, if_absent: bool = False) -> None:
        subject = name.replace("/", ".")
        await self._ensure_stream(name)
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"} if if_absent else None
        answer = json.loads((await self._request(subject, bytes(data), headers)).data)
        error = answer.get("error")
        if not error and self._is_cluster and subject.endswith(".m"):
            self._seen.note(subject, int(answer.get("seq", 0)))
        if error and "exceeded" in str(error.get("description")):
            raise Refused(no_more_stored(self._identity.name, error["description"]))
        if error and not (if_absent and error.get("err_code") == _WRONG_LAST_SEQUENCE):
            raise Unreachable(f"the broker did not store it: {error.get('description', 'no reason given')}")

    async def _get(self, name: str) -> bytes | None:
        await self._ensure_stream(name)
        subject = name.replace("/", ".")
        answer = await self._request(f"$JS.API.DIRECT.GET.{stream_of(name)}.{subject}", b"", None)
        headers = answer.headers or {}
        status = headers.get("Status")
        if status not in (None, "404"):
            raise Unreachable(f"the broker answers {status}: {headers.get('Description', '')}")
        sequence = int(headers.get("Nats-Sequence", 0))
        if self._is_cluster and subject.endswith(".m") and self._seen.is_old(subject, sequence):
            raise Unreachable(cluster.BEHIND)
        return None if status else cast(bytes, answer.data)

    async def _request(self, subject: str, data: bytes, headers: dict[str, str] | None) -> Any:
        import nats.errors

        client = await self._connected()
        timeout_s = self._patience.seconds if self._is_cluster else self._timeout_s
        task = asyncio.ensure_future(client.request(subject, data, timeout_s, headers=headers))
        self._requests[task] = subject
        try:
            patience = self._patience
            return await (patience.answer_of(task) if self._is_cluster else answer_of(task, client, patience))
        except asyncio.CancelledError:
            if task not in self._denied:
                raise
            raise Refused(no_rights(self._identity.name)) from None
        except nats.errors.NoRespondersError:
            self._streams.clear()  # the broker's disk was lost: the hub creates them again
            raise Unreachable(cluster.NOBODY if self._is_cluster else NO_STREAM) from None
        except nats.errors.TimeoutError:
            if self._is_cluster:
                await self._leave_if_silent(client)
                raise Unreachable(cluster.NO_ANSWER) from None
            raise Unreachable(f"the broker did not answer within {timeout_s:g} s") from None
        except nats.errors.Error as error:
            raise Unreachable(f"the broker did not answer: {first_line(error)}") from None
        finally:
            task.cancel()
            self._requests.pop(task, None)
            self._denied.discard(task)

    # -- the connection

    async def _leave_if_silent(self, client: Any) -> None:
        """Let go of a broker that does not even say that it lives; the next request goes to any other."""
        began = time.monotonic()
        try:
            await client.flush(self._patience.seconds)
            self._patience.missed(time.monotonic() - began)
        except Exception:  # noqa: BLE001 - whatever it says, it does not answer
            self._patience.missed(self._patience.seconds)
            if self._client is client:
                self._client = None
                await self._on_disconnected()
                await close_quietly(client.close())

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
            # A client accepts only servers of one scheme: NATS over TLS is tried before WebSocket.
            for scheme in _SCHEMES:
                urls = [url for url in self._urls if url.startswith(scheme)]
                if urls and await self._connect_to(urls):
                    return
            raise self._unreachable()

    def _unreachable(self) -> Unreachable:
        where = f"no connection to the broker at {', '.join(self._urls)}"
        if self._refusal:
            return Refused(f"{where}: {self._refusal}")
        return Unreachable(f"{where}: {self._last_error or 'no answer'}; {DOES_IT_RUN}")

    async def _connect_to(self, urls: list[str]) -> bool:
        client = new_client(self._proxy)
        connect_s = int(_CONNECT_S) if len(urls) == 1 else cluster.CONNECT_ONE_S
        self._refusal = self._last_error = ""
        self._failures, self._failed = len(urls), asyncio.Event()
        try:
            await run_unless(
                self._failed,
                client.connect(
                    **connection_settings(urls, self._identity, connect_s),
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    error_cb=self._on_error,
                ),
                connect_s * len(urls),
            )
            await self._subscribe(client)
            self._is_cluster = bool(client._server_info.get("cluster"))
            self.settle_s = cluster.SETTLE_S if self._is_cluster else 0.0
        except Exception as error:  # noqa: BLE001 - closes the connection, then raises again
            await discard(client)
            self._last_error = self._last_error or first_line(error)
            return False
        self._client = client
        return True

    async def _subscribe(self, client: Any) -> None:
        if role_of(self._identity.name) not in (HUB, SITE):
            return  # a broker reads the rights now and then

        async def on_message(message: Any) -> None:
            if not message.subject.endswith(".heartbeat.m"):
                self._changed.set()

        await client.subscribe(
            f"up.{self._study}.*.*.m" if self._is_hub else f"glob.{self._study}.*.m", cb=on_message
        )

    async def _on_disconnected(self) -> None:
        # Pending requests would wait for their whole timeout, although no answer can arrive any more.
        for task in list(self._requests):
            task.cancel()
        self._streams.clear()
        # A broker that is started again may have a larger disk.
        self._site_bytes = self._wanted_bytes

    async def _on_reconnected(self) -> None:
        self._changed.set()

    async def _on_error(self, error: Exception) -> None:
        text = self._last_error = first_line(error) or type(error).__name__
        if DENIED in str(error).lower():
            self._deny(str(error).lower())
            return
        # Once every address has failed, the connection has; the client alone would keep trying silently.
        self._failures -= 1
        if self._failures == 0:
            self._failed.set()
        self._refusal = explain_refusal(text, self._identity) or self._refusal
        log.debug("broker: %s", text)

    def _deny(self, text: str) -> None:
        """End the requests that the broker refuses: it answers them with an error of the connection alone."""
        for task, subject in list(self._requests.items()):
            if f'"{subject.lower()}"' in text:
                self._denied.add(task)
                task.cancel()

    # -- the hub's streams

    def _sites(self) -> list[str]:
        path = self._identity.folder / "sites.txt"
        return path.read_text().split() if path.exists() else []

    def _replicas(self) -> int:
        path = self._identity.folder / BROKERS_FILE
        return len(path.read_text().split()) if path.exists() else 1

    async def _ensure_stream(self, name: str) -> None:
        if self._is_hub and stream_of(name) not in self._streams:
            await self._create(stream_of(name))

    async def _create(self, stream: str) -> None:
        async with self._creating:
            while stream not in self._streams:
                try:
                    await self._change_settings(stream)
                    self._streams.add(stream)
                except _NoRoom:
                    await self._shrink_sites()
            if self._site_bytes < self._wanted_bytes:
                self._tell_share()

    def _tell_share(self) -> None:
        text = no_room(self._wanted_bytes, self._site_bytes, len(self._sites()))
        if text not in self._told:
            log.warning("hub: %s", text)
        self._told.add(text)

    async def _change_settings(self, stream: str) -> None:
        # To create one that exists, or to change nothing, the broker would look for all the room once more.
        before = await self._existing(stream)
        settings = stream_settings(stream, self._study, self._site_bytes, before, self._replicas())
        if settings.items() <= before.items():
            return
        if not await self._change_stream("UPDATE" if before else "CREATE", stream, settings):
            raise Unreachable(f"the broker did not change '{stream}': another hub has just created it")

    async def _shrink_sites(self) -> None:
        """Halve what each site may store, until all of them fit on the broker's disk.

        Raises:
            Unreachable: if the disk is too small for any exchange.
        """
        share = self._site_bytes // 2
        if share < MIN_SITE_BYTES:
            self._site_bytes = self._wanted_bytes
            raise Unreachable(no_room(self._wanted_bytes, share, len(self._sites())))
        self._site_bytes = share
        for stream in await self._stored():
            bounded = stream.startswith("UP_") or stream == ROOM
            settings = shrunk(await self._existing(stream), share) if bounded else None
            if settings is not None:
                await self._change_stream("UPDATE", stream, settings)

    async def _existing(self, stream: str) -> dict[str, Any]:
        return cast(dict[str, Any], (await self._info(stream)).get("config", {}))

    async def _info(self, stream: str) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(
            (await self._request(f"$JS.API.STREAM.INFO.{stream}", b"", None)).data
        )
        error = reply.get("error", {})
        if error and error.get("err_code") != _NO_STREAM:
            raise Unreachable(f"the broker does not say what '{stream}' is: {error.get('description')}")
        return reply

    async def _stored(self) -> dict[str, int]:
        """Return the bytes of each stream."""
        sizes: dict[str, int] = {}
        while True:
            reply = await self._request("$JS.API.STREAM.LIST", b'{"offset": %d}' % len(sizes), None)
            page = json.loads(reply.data)
            found = {one["config"]["name"]: int(one["state"]["bytes"]) for one in page.get("streams") or ()}
            sizes |= found
            if not found or len(sizes) >= page.get("total", 0):
                return sizes

    async def _purge(self, stream: str, subjects: str) -> None:
        if stream not in self._streams:
            await self._create(stream)
        await self._change_stream("PURGE", stream, {"filter": subjects})
        self._seen.forget()

    async def _change_stream(self, action: str, stream: str, settings: dict[str, Any]) -> bool:
        """Create, update or purge a stream; return False if it exists already, with other settings."""
        request = f"$JS.API.STREAM.{action}.{stream}"
        reply = await self._request(request, json.dumps(settings).encode(), None)
        error = json.loads(reply.data).get("error")
        if error and error.get("err_code") == _NO_STREAM:
            self._streams.discard(stream)  # its store was lost: the next attempt creates it again
        if error and error.get("err_code") != _STREAM_EXISTS:
            reason = error.get("description", "no reason given")
            kind = _NoRoom if error.get("err_code") == _NO_ROOM or _NO_ROOM_TEXT in reason else Unreachable
            raise kind(f"the broker did not {action.lower()} '{stream}': {reason}")
        return not error
