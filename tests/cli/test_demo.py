"""`medfed demo` opens the report that it wrote, unless it is told not to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from medfed.cli import _output, main
from medfed.cli import demo as command
from medfed.pipeline import demo as work


@pytest.mark.parametrize("words, opened", [([], 1), (["--no-open"], 0)])
def test_the_report_is_opened_unless_told_not_to(tmp_path, monkeypatch, words, opened):
    pages = []
    run = SimpleNamespace(report=tmp_path / "report.html")
    monkeypatch.setattr(work, "demo", lambda folder, progress: run)
    monkeypatch.setattr(_output, "print_result", lambda run: None)
    monkeypatch.setattr("webbrowser.open", pages.append)
    result = CliRunner().invoke(main, ["demo", str(tmp_path / "new"), *words])
    assert result.exit_code == 0, result.output
    assert pages == [run.report.resolve().as_uri()] * opened
    assert command is not None
