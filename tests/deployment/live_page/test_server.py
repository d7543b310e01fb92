"""Where the page is served and with what protection, over real sockets of this machine; and in Chromium."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from deployment.live_page.runs import make_run

from medfed.deployment.live_page import server
from medfed.deployment.live_page.server import PageSettings, check_settings, parse_address, read_token, serve
from medfed.errors import MedfedError
from medfed.runs.status import Status


def get(url: str, context: ssl.SSLContext | None = None, **headers: str) -> bytes:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        return answer.read()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8443", ("127.0.0.1", 8443)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:8443", ("::1", 8443)),
        ("hub.example.org:1", ("hub.example.org", 1)),
    ],
)
def test_an_address_is_a_port_or_host_and_port(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["configs/study.yaml", "65536", "", ":8443", "::1:80", "host", "a b:1", "-1"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(MedfedError, match="expected PORT or HOST:PORT, such as 8443"):
        parse_address(text)


@pytest.mark.parametrize(
    "settings",
    [
        PageSettings("0.0.0.0"),
        PageSettings("::"),
        PageSettings("hub.example.org"),
        PageSettings("10.0.0.1", token=Path("token")),
        PageSettings("10.0.0.1", certificate=Path("c"), key=Path("k")),
    ],
)
def test_an_address_that_others_reach_needs_tls_and_a_token(settings):
    with pytest.raises(
        MedfedError, match="needs TLS and a token: --page-certificate, --page-key and --page-token"
    ):
        check_settings(settings)


def test_loopback_needs_none_and_half_of_tls_is_refused():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_settings(PageSettings(host))
    check_settings(PageSettings("0.0.0.0", 1, Path("c"), Path("k"), Path("t")))
    with pytest.raises(MedfedError, match="--page-certificate and --page-key belong together"):
        check_settings(PageSettings(certificate=Path("c")))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(server, "_PACKAGES", ("starlette", "no_such_package"))
    with pytest.raises(MedfedError, match=r"--page needs no_such_package: pip install 'medfed\[page\]'"):
        check_settings(PageSettings())


def test_a_token_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "token"
    token = read_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == token
    path.chmod(0o644)
    with pytest.raises(MedfedError, match="has mode 0644, which lets other accounts use it"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(MedfedError, match="holds 5 characters, at least 32 without spaces are needed"):
        read_token(path)


def test_it_serves_until_the_block_ends_and_leaves_no_thread(shown_run):
    with serve(PageSettings(port=0), lambda: shown_run) as url:
        assert url.startswith("http://127.0.0.1:")
        assert b"lungs" in get(url)
        assert b"medfed_round 4.0" in get(f"{url}metrics")
    assert "medfed-page" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(urllib.error.URLError):
        get(url)


def test_a_port_that_is_taken_is_refused_before_anything_is_trained(shown_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                MedfedError, match=rf"--page 127\.0\.0\.1:{port}: this address cannot be used: Addr"
            ),
            serve(PageSettings(port=port), lambda: shown_run),
        ):
            raise AssertionError("it must not be served")


def test_an_error_of_the_block_is_not_lost(shown_run):
    with pytest.raises(ValueError, match="of the run"), serve(PageSettings(port=0), lambda: shown_run):
        raise ValueError("of the run")


def test_broken_requests_end_nothing(shown_run, capfd):
    with serve(PageSettings(port=0), lambda: shown_run) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        for data in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000, b""):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(data)
        assert b"lungs" in get(url)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 and its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def test_over_tls_it_asks_for_the_token(shown_run, tls, tmp_path):
    settings = PageSettings("127.0.0.1", 0, *tls, tmp_path / "token")
    with serve(settings, lambda: shown_run) as url:
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(tls[0]))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url, context)
        token = (tmp_path / "token").read_text().strip()
        assert b"lungs" in get(url, context, Authorization=f"Bearer {token}")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(urllib.error.URLError):
            get(url, old, Authorization=f"Bearer {token}")


def is_closed(client: socket.socket) -> bool:
    """Return whether the other side has ended the connection."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("over_tls", [False, True])
def test_whoever_opens_many_connections_and_says_nothing_keeps_nobody_out(
    shown_run, tls, tmp_path, monkeypatch, over_tls
):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    context = ssl.create_default_context(cafile=str(tls[0])) if over_tls else None
    protected = PageSettings("127.0.0.1", 0, *tls, tmp_path / "token")
    with ExitStack() as stack:
        url = stack.enter_context(serve(protected if over_tls else PageSettings(port=0), lambda: shown_run))
        port = int(url.rsplit(":", 1)[1].strip("/"))
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(12)]
        for client in slow[8:]:
            client.sendall(b"\x16\x03" if over_tls else b"GET / HTTP/1.1\r\nHost: 127")
        token = (tmp_path / "token").read_text().strip() if over_tls else ""
        assert b"lungs" in get(url, context, Authorization=f"Bearer {token}")
        # Of 12 and then 1 more, the process holds at most 4 open at once: the 9 oldest were ended.
        for client in slow[:9]:
            client.settimeout(10)
            assert client.recv(1) == b""
        assert not any(is_closed(client) for client in slow[9:])


def test_a_key_that_cannot_be_used_is_refused(shown_run, tls, tmp_path):
    (tmp_path / "key.pem").write_text("no key")
    with (
        pytest.raises(MedfedError, match="--page-certificate, --page-key: they cannot be used"),
        serve(PageSettings(port=0, certificate=tls[0], key=tmp_path / "key.pem"), lambda: shown_run),
    ):
        raise AssertionError("it must not be served")


# ----------------------------------------------------------------------------------------- in a browser

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"
)


def chromium(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-features=NetworkTimeServiceQuerying",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            *arguments,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "HOME": str(folder)},
    )


@pytest.mark.slow
@needs_chromium
def test_chromium_shows_a_hostile_run_without_running_it_and_refreshes(tmp_path):
    """The state changes after the page was loaded: the script, allowed by the policy, brings it in."""
    run = make_run(tmp_path / "run")
    status = Status(run / "status.json", study="lungs", rounds=10)
    asked: list[None] = []

    def find() -> Path:
        asked.append(None)
        if len(asked) > 1:
            status.update(state="finished")
        return run

    with serve(PageSettings(port=0), find) as url:
        result = chromium(tmp_path, url, "--virtual-time-budget=15000", "--dump-dom")
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(asked) > 1
    assert '<p class="state finished" role="status">Finished' in result.stdout
    assert "<title>4/10 finished" in result.stdout
    assert 'id="stale" role="alert" hidden' in result.stdout
    assert "owned" not in result.stdout.split("</head>")[0]
    assert "Refused to" not in result.stderr
    assert "CONSOLE" not in result.stderr


@pytest.mark.slow
@needs_chromium
def test_a_page_whose_server_has_ended_says_that_it_is_old(tmp_path):
    run, asked = make_run(tmp_path / "run"), []

    def find() -> Path | None:
        asked.append(None)
        return run if len(asked) == 1 else None

    with serve(PageSettings(port=0), find) as url:
        result = chromium(tmp_path, url, "--virtual-time-budget=15000", "--dump-dom")
    assert 'id="stale" role="alert">Not refreshed since <span id="refreshed">' in result.stdout
    assert "Running: round 5 of 10" in result.stdout


@pytest.mark.slow
@needs_chromium
def test_it_fits_a_phone(tmp_path):
    """No part is wider than the window: a page that must be pushed sideways is not read."""
    run = make_run(tmp_path / "run")
    probe = tmp_path / "probe.html"
    with serve(PageSettings(port=0), lambda: run) as url:
        page, style = get(url).decode(), get(f"{url}live.css").decode()
    page = page.replace('<link rel="stylesheet" href="live.css">', f"<style>{style}</style>")
    width = (
        "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth; for (const one of "
        "document.querySelectorAll('*')) if (one.getBoundingClientRect().right > innerWidth + 1) "
        "document.title += ' ' + one.tagName + '.' + one.className"
    )
    probe.write_text(page.replace('<script src="live.js" defer></script>', "") + f"<script>{width}</script>")
    # Headless windows are at least 500 pixels wide; a frame is as narrow as a phone.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{probe.name}" width="360" height="800"></iframe><script>onload = () => '
        "{ document.title = frames[0].document.title }</script>"
    )
    result = chromium(tmp_path, frame.as_uri(), "--allow-file-access-from-files", "--dump-dom")
    # Without, or with, a scroll bar of 15 pixels beside it.
    assert re.search("<title>3(60|45) of 360</title>", result.stdout), result.stdout[:300]
