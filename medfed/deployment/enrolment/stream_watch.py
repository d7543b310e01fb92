"""Whether a broker's nats-server still answers for each of its streams, asked over a connection of its own.

nats-server 2.15 with a damaged message on its disk may look for it for ever, holding the stream's lock,
without a word in its log: it still takes connections and answers pings, but no request for that stream, and
SIGTERM does not end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from medfed.exchange._nats_connecting import connection_settings, discard, new_client
from medfed.exchange._nats_refusals import silence_asyncio
from medfed.wire.signing import Identity

log = logging.getLogger("medfed.deployment.enrolment.broker")

# After how long without an answer, while pings are answered, a stream is silent. While 45 MiB/s were stored
# on two processors at load 20, the slowest of 932 answers took 0.23 s; a cluster elects a leader within 9 s.
SILENT_S = 30.0

# How often each stream is asked: a request may be lost without a word while rights change, so it is repeated.
# And within how long a ping must be answered between two of these requests.
STEP_S, PING_S = 5.0, 5.0

# How often the last message of each stream is read, which the information on a stream does not.
READ_S = 60.0

# After how long without a connection a line says so.
TELL_S = 60.0

# For how long the end of the watch is waited for; its thread is one that a process does not wait for.
STOP_S = 10.0


class StreamWatch:
    """Asks the server for each stream in `streams` until `stop`, in a thread of its own.

    `pid` returns the server's process id. A broker `alone` stores every stream itself; of a cluster only the
    leader of a stream answers, so there a stream counts whose last known leader is this server.
    """

    def __init__(
        self, url: str, identity: Identity, streams: Path, pid: Callable[[], int], alone: bool
    ) -> None:
        self._url, self._identity, self._streams = url, identity, streams
        self._pid, self._alone = pid, alone
        self._silent: frozenset[str] = frozenset()
        # Per stream: the server that led it when it answered last.
        self._leaders: dict[str, str] = {}
        self._next_read = 0.0
        self._stopping = False
        silence_asyncio()
        self._loop = asyncio.new_event_loop()
        self._watching = self._loop.create_task(self._watch())
        self._thread = threading.Thread(target=self._run, name="medfed-broker-watch", daemon=True)
        self._thread.start()

    def take_silent(self) -> frozenset[str]:
        """Return the streams for which the server answers nothing, once."""
        silent, self._silent = self._silent, frozenset()
        return silent

    def stop(self) -> None:
        """Disconnect."""
        self._stopping, end = True, time.monotonic() + STOP_S
        while self._thread.is_alive() and time.monotonic() < end:
            # More than once: nats-py takes some cancellations for its own and goes on.
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._watching.cancel)
            self._thread.join(0.2)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._watching)
        self._loop.close()

    async def _watch(self) -> None:
        since, told = time.monotonic(), False
        while not self._stopping:
            try:
                async with self._connected() as client:
                    while client.is_connected and not self._stopping:
                        since = time.monotonic()
                        await self._look(client)
                        await asyncio.sleep(STEP_S)
            except Exception as error:  # noqa: BLE001 - the server may be ending, or not there yet
                if time.monotonic() - since >= TELL_S and not told:
                    told = True
                    log.warning(
                        "whether the broker answers for its streams is not watched: no connection to it for "
                        "%.0f s (%s); its log says why",
                        TELL_S,
                        type(error).__name__,
                    )
            await asyncio.sleep(STEP_S)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        client = new_client("")
        settings = connection_settings([self._url], self._identity, int(PING_S))
        settings |= {"allow_reconnect": False, "name": f"{self._identity.name} (watch)"}
        try:
            await client.connect(**settings, error_cb=_ignored)
            yield client
        finally:
            await discard(client)

    async def _look(self, client: Any) -> None:
        """Ask for all streams until each has answered, or note those that stay silent."""
        pending = {path.name for path in self._streams.glob("*/") if path.is_dir()}
        reads = self._alone and time.monotonic() >= self._next_read
        asked: dict[asyncio.Future[Any], str] = {}
        try:
            for _ in range(round(SILENT_S / STEP_S)):
                for name in pending:
                    asked[asyncio.ensure_future(self._ask(client, name, reads))] = name
                pending = await self._unanswered(asked, pending)
                if not pending:
                    self._next_read = time.monotonic() + READ_S if reads else self._next_read
                    return
                if not await self._answers_ping(client) or waits_for_disk(self._pid()):
                    return  # the whole machine is slow, or its disk
            own = str(client._server_info.get("server_name"))
            self._silent = frozenset(
                name for name in pending if self._alone or self._leaders.get(name) == own
            )
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _unanswered(self, asked: dict[asyncio.Future[Any], str], pending: set[str]) -> set[str]:
        """Return which streams have answered no request within a step."""
        end = time.monotonic() + STEP_S
        while pending and (left_s := end - time.monotonic()) > 0:
            running = [task for task, name in asked.items() if name in pending]
            done, _ = await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            pending = pending - {asked[task] for task in done}
        return pending

    async def _ask(self, client: Any, name: str, reads: bool) -> None:
        """Return once the server has answered; whatever it says, it is not silent."""
        import nats.errors

        with contextlib.suppress(nats.errors.NoRespondersError):
            reply = await client.request(f"$JS.API.STREAM.INFO.{name}", b"", 2 * SILENT_S)
            found = json.loads(reply.data)
            self._leaders[name] = str((found.get("cluster") or {}).get("leader"))
            last = int((found.get("state") or {}).get("last_seq", 0))
            if reads and last:
                request = json.dumps({"seq": last}).encode()
                await client.request(f"$JS.API.DIRECT.GET.{name}", request, 2 * SILENT_S)

    async def _answers_ping(self, client: Any) -> bool:
        # Not `flush`: nats-py stops reading when a ping is answered whose wait was given up.
        ping: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await client._send_ping(ping)
        done, _ = await asyncio.wait({ping}, timeout=PING_S)
        return bool(done) and bool(client.is_connected)


async def _ignored(error: Exception) -> None:
    log.debug("the watch's connection: %s", error)


def waits_for_disk(pid: int) -> bool:
    """Return whether a thread of a process waits for a disk at the moment; False where no system says so."""
    return any(state == "D" for state in _thread_states(pid))


def _thread_states(pid: int) -> Iterable[str]:
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError, IndexError):
            # The state follows the program's name in parentheses, which may hold anything.
            yield path.read_text().rpartition(")")[2].split()[0]
