"""Options that several commands share: those of a run, and the layout of a folder."""

from __future__ import annotations

import click
from click.testing import CliRunner

from medfed.cli import main
from medfed.cli.options import layout_option
from medfed.data.layouts.paired import Paired


def test_the_run_options_reach_the_command_as_one_record(monkeypatch):
    received = []
    monkeypatch.setattr("medfed.cli.train._train_study", lambda *arguments: received.append(arguments))
    words = [
        "train",
        "s.yaml",
        "--out",
        "x",
        "--set",
        "a=1",
        "--set",
        "b=2",
        "--resume",
        "--without",
        "south",
        "--former",
        "y",
        "--quiet",
    ]
    assert CliRunner().invoke(main, words).exit_code == 0
    study, options, leave_one_out, page = received[0]
    assert page.page is None
    assert (str(study), str(options.out), options.overrides) == ("s.yaml", "x", ("a=1", "b=2"))
    assert (options.resume, options.without, str(options.former), options.quiet) == (True, "south", "y", True)
    assert leave_one_out is False


def taken(*words: str) -> tuple[int, str, list[object]]:
    """Return the exit code, the output and the layout of a command with `--layout`."""
    layouts: list[object] = []

    @click.command()
    @layout_option
    def command(layout: object) -> None:
        layouts.append(layout)

    done = CliRunner().invoke(command, [*words])
    return done.exit_code, done.output, layouts


def test_a_layout_is_named_and_none_is_none():
    assert taken() == (0, "", [None])
    code, _, layouts = taken("--layout", "paired")
    assert (code, layouts) == (0, [Paired()])


def test_an_unknown_layout_is_answered_with_the_known_ones():
    done = CliRunner().invoke(main, ["check", ".", "--layout", "paird"])
    assert done.exit_code == 1
    assert "paird" in done.stderr
    assert "paired" in done.stderr
    assert done.stdout == ""
