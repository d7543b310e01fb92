"""The live page as an ASGI application, which only reads: routes, headers, and who may ask.

It is read-only: no route takes anything but GET, and nothing a client sends is logged or shown.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medfed.deployment.live_page import page
from medfed.deployment.live_page.metrics import metrics
from medfed.deployment.live_page.view import View, read_view
from medfed.errors import MedfedError
from medfed.files import read_plain
from medfed.runs.folder import RunFolder
from medfed.runs.status import status_schema

# Returns the run folder, or None as long as there is none.
FindFolder = Callable[[], Path | None]

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# The report has its style in itself, and neither script nor form.
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
)

# By these names a browser asks for a page of its own machine; any other may be a trick of another page's
# (DNS rebinding).
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

_NO_RUN = "There is no run folder yet: the study has not begun here. This page shows it as soon as it has."


def application(find_folder: FindFolder, token: str | None = None) -> ASGIApp:
    """Return the application that shows the run in the folder that `find_folder` returns.

    With a token, each request must carry it as a Bearer token, or as the password that a browser asks for;
    without one, requests must name this machine as loopback.
    """

    def shown(make: Callable[[View], Response]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            folder = find_folder()
            if folder is None:
                return PlainTextResponse(_NO_RUN, 503, {"Retry-After": "5"})
            try:
                return make(read_view(folder))
            except MedfedError as error:
                return PlainTextResponse(str(error), 503)
            except Exception as error:  # noqa: BLE001 - a page must not end a hub, nor quote what it read
                return PlainTextResponse(f"the page cannot be made: {type(error).__name__}", 500)

        return answer

    def report(request: Request) -> Response:
        folder = find_folder()
        if folder is None or not os.path.lexists(RunFolder(folder).report):
            return PlainTextResponse("There is no report yet.", 404)
        try:
            content = read_plain(RunFolder(folder).report)
        except OSError:
            # Whoever made the run folder could show any file of whoever looks at it.
            return PlainTextResponse("The report is a link or cannot be read; it is not shown.", 403)
        return HTMLResponse(content, headers={"Content-Security-Policy": _REPORT_POLICY})

    routes = {
        "/": shown(lambda view: HTMLResponse(page.page(view))),
        "/live": shown(lambda view: HTMLResponse(page.live(view))),
        "/status.json": shown(_status),
        "/metrics": shown(lambda view: Response(metrics(view), media_type="text/plain; version=0.0.4")),
        "/report": report,
        "/status.schema.json": lambda request: JSONResponse(status_schema()),
        "/live.css": lambda request: Response(page.style(), media_type="text/css"),
        "/live.js": lambda request: Response(page.script(), media_type="text/javascript"),
    }
    inner = Starlette(routes=[Route(path, answer, methods=["GET"]) for path, answer in routes.items()])
    return _Guard(inner, token)


def _status(view: View) -> Response:
    return Response(msgspec.json.encode(view.status), media_type="application/json")


class _Guard:
    """Lets through who may see the page, and adds the headers that keep a browser from doing more."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.lower().encode() not in given
                ]
            await send(message)

        if scope["type"] != "http":
            return
        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            if _host(request.headers.get("host", "")) in LOOPBACK_NAMES:
                return None
            return PlainTextResponse("This page answers to localhost alone.", 421)
        if hmac.compare_digest(_given_token(request.headers.get("authorization", "")), self._token):
            return None
        asks = {"WWW-Authenticate": 'Basic realm="medfed: any name, the token as password", charset="UTF-8"'}
        return PlainTextResponse("The token of --page-token is needed.", 401, asks)


def _host(header: str) -> str:
    """Return the name in a Host header, without its port."""
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() and ":" in header else header


def _given_token(authorization: str) -> bytes:
    """Return the token in an Authorization header, b'' if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("utf-8", "replace")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
