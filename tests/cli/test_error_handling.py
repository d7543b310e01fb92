"""A refusal is one message and exit code 1; Ctrl-C says how to continue."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from medfed.cli.error_handling import Commands
from medfed.errors import DataError


def ended_by(error, name="train", options=()):
    """The result of a command of this name that ends in an error."""
    group = Commands("medfed")
    inner = Commands("data")

    @click.option("--site")
    def command(site=None):
        raise error

    command.__name__ = name
    inner.add_command(click.command("run")(command))
    group.add_command(inner)
    return CliRunner().invoke(group, ["data", "run", *options])


def test_a_refusal_is_its_message_on_standard_error_without_a_traceback():
    result = ended_by(DataError("hospital 'north': no case"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "medfed: hospital 'north': no case\n"


def test_an_option_that_refuses_its_value_does_so_without_a_traceback():
    def refuse(context, parameter, value):
        raise DataError(f"layout: no '{value}'")

    group, inner = Commands("medfed"), Commands("data")

    @click.command("run")
    @click.option("--layout", callback=refuse)
    def command(layout):
        raise AssertionError("it ran")

    inner.add_command(command)
    group.add_command(inner)
    result = CliRunner().invoke(group, ["data", "run", "--layout", "paird"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "medfed: layout: no 'paird'\n"


def test_an_error_of_the_program_keeps_its_traceback():
    assert isinstance(ended_by(ZeroDivisionError("x")).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("name", "options", "remedy"),
    [
        ("train", (), "the same command with --resume continues after the last round"),
        ("hub", (), "the same command with --resume continues after the last round"),
        # A hospital's service resumes by itself.
        ("train", ("--site", "site.yaml"), "the same command continues after the last round"),
        ("check", (), "run the same command again"),
    ],
)
def test_an_interrupted_command_says_how_to_continue(name, options, remedy):
    result = ended_by(KeyboardInterrupt(), name, options)
    assert result.exit_code == 130
    assert result.stderr == f"\nmedfed: interrupted; {remedy}\n"
