"""`medfed watch`, and what `--page` refuses before anything is trained."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from medfed.cli.commands import main
from medfed.runs.status import Status


@pytest.fixture
def run(tmp_path):
    (tmp_path / "lungs").mkdir()
    Status(tmp_path / "lungs" / "status.json", study="lungs", rounds=10).update(state="finished", round=10)
    return tmp_path / "lungs"


def call(*words: str):
    return CliRunner().invoke(main, [*words])


def test_it_prints_what_the_page_shows(run):
    result = call("watch", str(run), "--json")
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert (plain["run"], plain["life"], plain["round"], plain["rounds"]) == ("lungs", "finished", 10, 10)


def test_it_serves_until_ctrl_c_which_is_no_error(run, monkeypatch):
    from medfed.cli import watch

    class Interrupted:
        def wait(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch, "Event", Interrupted)
    result = call("watch", str(run), "--page", "0")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == "lungs: Finished"
    assert second.startswith("live page: http://127.0.0.1:")
    assert second.endswith("/ (Ctrl-C ends it, not the run)")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    result = call("watch", str(tmp_path))
    assert result.exit_code == 1
    assert "no run folder: it has neither status.json nor run.json" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "study.yaml", "--page", "0.0.0.0:8443"), "needs TLS and a token"),
        (("hub", "study.yaml", "--page", "[::]:8443"), "needs TLS and a token"),
        (("train", "--page", "study.yaml"), "expected PORT or HOST:PORT"),
        (("hub", "study.yaml", "--page-token", "token"), "go with --page"),
    ],
)
def test_a_page_that_cannot_be_is_refused_first(words, message):
    """The study file does not even exist."""
    result = call(*words)
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")
