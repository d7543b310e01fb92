"""`medfed check` shows every character of what a study, a site file or data hold."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.data.preflight.issues import Problem
from medfed.data.preflight.preflight import Preflight
from medfed.errors import DataError
from medfed.pipeline import check as module

# A terminal's clear-screen sequence, hidden text, the right-to-left override and a line of its own.
HOSTILE = "liver\x1b[2J\x1b[8m\u202e\n[red]all is well[/red]"
SHOWN = "liver\\x1b[2J\\x1b[8m\\u202e\\n[red]all is well[/red]"

FACTS = {"columns": {HOSTILE: HOSTILE}, "rows": HOSTILE}


def in_words(document):
    return False


@pytest.fixture
def hostile(monkeypatch):
    problem = Problem("x", "error", HOSTILE, HOSTILE, HOSTILE, ((HOSTILE, HOSTILE),))
    result = Preflight(HOSTILE, FACTS, (problem,), study=HOSTILE, unlisted=HOSTILE)
    monkeypatch.setattr(module, "_preflight", lambda *_, **__: result)


def test_the_terminal_and_the_page_show_it(hostile, tmp_path, capsys):
    assert module.check(tmp_path, None, in_words, tmp_path / "page.html") == 2
    printed = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    for text in (printed, page):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert SHOWN in text
    assert not [line for line in printed.splitlines() if line.startswith("[red]")]


def test_json_is_ascii_and_keeps_the_text(hostile, tmp_path):
    done = CliRunner().invoke(main, ["check", str(tmp_path), "--json"])
    assert done.exit_code == 2
    printed = done.stdout
    assert printed.isascii()
    assert json.loads(printed)["verdict"] == HOSTILE


def test_so_does_the_reason_why_a_folder_cannot_be_used(monkeypatch, tmp_path, capsys):
    def refuse(*_, **__):
        raise DataError(f"class {HOSTILE}")

    monkeypatch.setattr(module, "_preflight", refuse)
    assert module.check(tmp_path, None, in_words, None) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("medfed: class liver\\x1b[2J\\x1b[8m\\u202e")
    assert "\x1b" not in printed
