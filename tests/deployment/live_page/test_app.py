"""Who may ask for the page, what it answers, and with which headers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path

import jsonschema
import pytest

from medfed.deployment.live_page import app as live_app
from medfed.deployment.live_page.app import application
from medfed.runs.status import status_schema

TOKEN = "t" * 40


class Answer:
    """A response of the application."""

    def __init__(self, messages: list[dict]) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(one.get("body", b"") for one in messages[1:])


def ask(app, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    """Ask the application for a path, without a network."""
    sent: list[dict] = []
    given = {"host": "127.0.0.1:8443", **headers}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "scheme": "http", "root_path": "", "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return Answer(sent)


@pytest.fixture(scope="module")
def app(shown_run):
    return application(lambda: shown_run)


def test_each_page_has_headers_that_keep_a_browser_from_doing_more(app):
    for path in ("/", "/live", "/metrics", "/status.json", "/live.js", "/live.css", "/nothing"):
        headers = ask(app, path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;"), (
            path
        )
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


def test_what_it_answers(app):
    assert ask(app).body.startswith(b"<!doctype html>")
    assert b"<html" not in ask(app, "/live").body
    assert ask(app, "/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    status = json.loads(ask(app, "/status.json").body)
    jsonschema.validate(status, json.loads(ask(app, "/status.schema.json").body))
    assert json.loads(ask(app, "/status.schema.json").body) == status_schema()
    assert ask(app, "/live.js").headers["content-type"].startswith("text/javascript")
    assert ask(app, "/nothing").status == 404


@pytest.mark.parametrize(
    "path", ["/cases.html", "/../lungs/run.json", "/run.json", "/checkpoints", "//etc/passwd"]
)
def test_no_file_of_the_run_folder_is_served_but_the_report(app, path):
    assert ask(app, path).status == 404


def test_nothing_can_be_changed(app):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(app, "/", method).status == 405


def test_the_report_may_have_its_own_style_and_no_script(tmp_path, shown_run):
    from medfed.runs.folder import RunFolder

    app = application(lambda: shown_run)
    assert ask(app, "/report").status == 404
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "report.html").write_text("<style>p { color: red }</style>")
    answer = ask(application(lambda: tmp_path), "/report")
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert "style-src 'unsafe-inline'" in policy
    assert "script-src" not in policy
    assert "sandbox" in policy
    assert b"report" in ask(application(lambda: tmp_path)).body
    assert RunFolder(tmp_path).report.is_file()


def test_a_report_that_is_a_link_or_a_pipe_is_not_shown(tmp_path):
    (tmp_path / "secret").write_text("of whoever looks")
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text("{}")
    (run / "report.html").symlink_to(tmp_path / "secret")
    app = application(lambda: run)
    assert ask(app, "/report").status == 403
    assert ask(app, "/report").body == b"The report is a link or cannot be read; it is not shown."
    assert b'href="report' not in ask(app).body
    (run / "report.html").unlink()
    os.mkfifo(run / "report.html")
    assert ask(app, "/report").status == 403


@pytest.mark.parametrize("name", ["consent.txt", "status.json", "run.json", "rounds.jsonl", "study.json"])
def test_no_other_file_that_is_a_link_is_read(tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text('{"study": "of-whoever-looks"}')
    run = tmp_path / "run"
    run.mkdir()
    (run / ("run.json" if name == "status.json" else "status.json")).write_text("{}")
    (run / name).symlink_to(secret)
    shown = ask(application(lambda: run)).body.decode()
    assert f"{name}: is a link, which is not followed; put the file itself there" in shown
    assert "of-whoever-looks" not in shown


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8443", "127.0.0.1.evil.example", "", "[::2]:80"]
)
def test_a_name_that_another_page_points_here_is_refused(app, host):
    assert ask(app, host=host).status == 421


@pytest.mark.parametrize("host", ["localhost:8443", "127.0.0.1", "[::1]:8443", "[::1]"])
def test_this_machine_is_answered(app, host):
    assert ask(app, host=host).status == 200


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'anyone:{password}'.encode()).decode()}"


def test_with_a_token_every_path_needs_it(shown_run):
    app = application(lambda: shown_run, TOKEN)
    for path in ("/", "/live", "/metrics", "/status.json", "/report", "/live.js", "/status.schema.json"):
        refused = ask(app, path)
        assert refused.status == 401
        assert refused.headers["www-authenticate"].startswith("Basic realm=")
        assert b"lungs" not in refused.body
    for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
        assert ask(app, authorization=right, host="hub.example.org").status == 200
    for wrong in ("", "Bearer", f"Bearer {TOKEN}x", basic("wrong"), "Basic !!", f"Token {TOKEN}", "Bearer é"):
        assert ask(app, authorization=wrong).status == 401


def test_before_there_is_a_run_it_says_so(tmp_path):
    answer = ask(application(lambda: None))
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert answer.body.startswith(b"There is no run folder yet")
    gone = ask(application(lambda: tmp_path / "gone"))
    assert gone.status == 503
    assert b"no run folder" in gone.body
    assert str(tmp_path).encode() not in gone.body


def test_what_it_cannot_show_ends_nothing_and_quotes_nothing(shown_run, monkeypatch):
    def broken(folder: Path) -> None:
        raise ValueError("/data/Mrs Smith")

    monkeypatch.setattr(live_app, "read_view", broken)
    answer = ask(application(lambda: shown_run))
    assert (answer.status, answer.body) == (500, b"the page cannot be made: ValueError")
