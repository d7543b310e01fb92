"""The server of the live page: where it listens, with what protection, in a thread of its own.

On loopback anybody with an account on this machine may look. Anywhere else only over TLS and with a token.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfed.errors import MedfedError
from medfed.files import PRIVATE_FILE, private_folder

if TYPE_CHECKING:
    import uvicorn

    from medfed.deployment.live_page.app import FindFolder

DEFAULT_PORT = 8443
LOOPBACK = "127.0.0.1"

# The fewest characters of a token: 192 bits, as `secrets.token_urlsafe` writes them.
MIN_TOKEN_CHARACTERS = 32

# How long the server may take to start and to end, and how many connections it has at once: each is an open
# file of the hub's or the site's process, which needs those for its study.
START_S, STOP_S, MAX_CONNECTIONS = 15.0, 5.0, 64

_PACKAGES = ("starlette", "uvicorn", "prometheus_client")
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):)?(?P<port>\d{1,5})")


@dataclass(frozen=True)
class PageSettings:
    """Where the page is served.

    host, port: the address; port 0 is any free one.  certificate, key: PEM files, and token: the file of the
    token, both needed anywhere but on loopback; a token file that is missing is made.
    """

    host: str = LOOPBACK
    port: int = DEFAULT_PORT
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of PORT, HOST:PORT or [IPV6]:PORT; without a host, loopback.

    Raises:
        MedfedError: if it is none of them.

    >>> parse_address("8443"), parse_address("[::1]:80")
    (('127.0.0.1', 8443), ('::1', 80))
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise MedfedError(
            f"--page {text}: expected PORT or HOST:PORT, such as 8443 or 0.0.0.0:8443; without a port, "
            "write --page after all other words"
        )
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])


def check_settings(settings: PageSettings) -> None:
    """Check that the page is protected wherever others can reach it, and that its packages are installed.

    Raises:
        MedfedError: naming what is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MedfedError(f"--page needs {', '.join(missing)}: pip install 'medfed[page]'")
    if (settings.certificate is None) != (settings.key is None):
        raise MedfedError("--page-certificate and --page-key belong together: give both")
    if not settings.is_loopback and (settings.certificate is None or settings.token is None):
        raise MedfedError(
            f"--page {settings.host}:{settings.port}: other machines can reach this address, so it needs TLS "
            "and a token: --page-certificate, --page-key and --page-token; or stay on loopback (--page "
            f"{settings.port}) and reach it through ssh -L"
        )


@contextmanager
def serve(settings: PageSettings, find_folder: FindFolder) -> Iterator[str]:
    """Serve the page of the run in a folder while the block runs; yields its URL.

    Raises:
        MedfedError: if it is not protected as it must be, or the address cannot be used.
    """
    check_settings(settings)
    from medfed.deployment.live_page.app import application

    token = None if settings.token is None else read_token(settings.token)
    _check_certificate(settings)
    with _listening(settings) as listening:
        server = _server(application(find_folder, token), settings)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="medfed-page", daemon=True
        )
        thread.start()
        try:
            _wait_started(server, thread)
            yield _url(settings, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(STOP_S)


def _server(app: object, settings: PageSettings) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # an ASGI application
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",  # what a client sends wrongly is no line of a hub's log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=1,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )
    return uvicorn.Server(config)


def _wait_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    ended = threading.Event()
    for _ in range(round(START_S / 0.02)):
        if server.started or not thread.is_alive():
            break
        ended.wait(0.02)
    if not server.started:
        raise MedfedError(f"--page: the server did not start within {START_S:g} s; choose another port")


class _Gate(socket.socket):
    """A listening socket that has few connections at once: a new one ends the oldest.

    Whoever opens many and sends nothing, even before TLS, neither keeps others from the page nor takes the
    process's files; refusing the new ones would keep the slow ones. asyncio takes only a real socket.
    """

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.family, listening.type, fileno=listening.detach())
        self._open: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        self._open = [one for one in self._open if one.fileno() >= 0]
        while len(self._open) >= MAX_CONNECTIONS:
            with suppress(OSError):  # the client was quicker
                self._open.pop(0).shutdown(socket.SHUT_RDWR)
        self._open.append(accepted)
        return accepted, address


@contextmanager
def _listening(settings: PageSettings) -> Iterator[socket.socket]:
    where = f"--page {settings.host}:{settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = _Gate(socket.create_server(address[:2], family=family))
    except OSError as error:
        raise MedfedError(
            f"{where}: this address cannot be used: {error.strerror}; choose another, such as --page "
            f"{min(settings.port + 1, 65535)}"
        ) from None
    with opened:
        yield opened


def _url(settings: PageSettings, port: int) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'http' if settings.certificate is None else 'https'}://{host}:{port}/"


def _check_certificate(settings: PageSettings) -> None:
    if settings.certificate is None or settings.key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise MedfedError(
            f"--page-certificate, --page-key: they cannot be used: {why}; give a PEM certificate and its "
            "key without a password"
        ) from None


def _no_password() -> str:
    raise ValueError("the key has a password")


def read_token(path: Path) -> str:
    """Return the token in a file, which is made, readable only by its owner, if it is missing.

    Raises:
        MedfedError: if it cannot be read, is too short, or others can read it.
    """
    try:
        private_folder(path.resolve().parent)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    except FileExistsError:
        return _read_token(path)
    except OSError as error:
        raise MedfedError(f"--page-token: the file cannot be made: {error.strerror}") from None
    token = secrets.token_urlsafe(MIN_TOKEN_CHARACTERS)
    with os.fdopen(handle, "w") as file:
        file.write(f"{token}\n")
    return token


def _read_token(path: Path) -> str:
    try:
        token, mode = path.read_text(encoding="ascii").strip(), path.stat().st_mode & 0o777
    except (OSError, UnicodeDecodeError) as error:
        raise MedfedError(f"--page-token: the file cannot be read: {type(error).__name__}") from None
    if mode & 0o077:
        raise MedfedError(
            f"--page-token: the file has mode {mode:04o}, which lets other accounts use it; `chmod 600` it, "
            "or delete it for a new one"
        )
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isprintable() or " " in token:
        raise MedfedError(
            f"--page-token: the file holds {len(token)} characters, at least {MIN_TOKEN_CHARACTERS} without "
            "spaces are needed; delete it, and a new one is made"
        )
    return token
