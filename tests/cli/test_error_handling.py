"""A refusal is one message and an exit code of the table; Ctrl-C says how to continue."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from medfed.cli import error_handling
from medfed.cli.error_handling import Commands, TimeLimit
from medfed.errors import (
    DataError,
    DeadlineError,
    DeclinedError,
    EndedError,
    EnrolmentError,
    ExchangeError,
    QuorumError,
    SiteError,
    StudyError,
)
from medfed.files import not_written

ROOT = Path(__file__).parents[2]


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


def stopped_by(cause):
    """What ends a simulation whose site was stopped by `cause`."""
    try:
        raise SiteError("site 'north': stopped") from cause
    except SiteError as error:
        return error


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StudyError("x"), 1),
        (DeclinedError("x"), 3),
        (EnrolmentError("x"), 1),  # an exchange's error that no waiting mends
        (ExchangeError("x"), 75),
        (DeadlineError("x"), 75),
        (EndedError("x"), 4),
        (QuorumError("x"), 75),
        (OSError(errno.ENOSPC, "No space left on device"), 75),
        (PermissionError(errno.EACCES, "Permission denied"), 1),
        (not_written("model", OSError(errno.ENOSPC, "No space left on device"), "go on"), 75),
        (not_written("model", RuntimeError("PytorchStreamWriter failed"), "go on"), 75),
        (not_written("model", PermissionError(errno.EROFS, "Read-only file system"), "go on"), 1),
        (stopped_by(not_written("model", OSError(errno.ENOSPC, "No space left on device"), "go on")), 75),
        (stopped_by(DataError("no case")), 1),
    ],
)
def test_the_exit_code_tells_a_service_whether_to_try_again(error, code):
    assert ended_by(error).exit_code == code


def test_the_operating_systems_errors_are_messages_that_name_no_file():
    full = OSError(errno.ENOSPC, "No space left on device", "/images/Meier_Anna/ct.nii.gz")
    result = ended_by(full, "train", ("--site", "site.yaml"))
    assert result.stderr == (
        "medfed: this machine refused a file or a connection: No space left on device; free disk space, and "
        "the same command continues after the last round (which file: MEDFED_TRACEBACK=1 shows it)\n"
    )
    denied = ended_by(PermissionError(errno.EACCES, "Permission denied", "/images/Meier_Anna"), "check")
    assert "give this account the right to the data and run folders" in denied.stderr
    assert "Meier" not in denied.stderr


def test_a_full_disk_in_a_thread_beside_the_command_is_one_line_too(caplog, capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "/images/Meier_Anna/events.out")

    def write():
        raise full

    thread = threading.Thread(target=write, name="writer")
    error_handling._end_thread(threading.ExceptHookArgs((OSError, full, None, thread)))
    told = "thread 'writer' beside this command ended: No space left on device; free disk space"
    assert caplog.messages == [told]
    assert capsys.readouterr() == ("", "")


def test_the_traceback_of_such_an_error_can_be_had(monkeypatch):
    monkeypatch.setenv("MEDFED_TRACEBACK", "1")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert ended_by(full).exception is full


@pytest.mark.parametrize("service", ["medfed-hub.service", "medfed-site.service", "medfed-broker.service"])
def test_a_service_is_not_restarted_where_that_cannot_help(service):
    settings = dict(
        line.split("=", 1)
        for line in (ROOT / "docs" / "deploy" / service).read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert settings["RestartPreventExitStatus"].split() == ["2", "3", "4"]
    assert str(error_handling.INTERRUPTED) in settings["SuccessExitStatus"].split()


def test_the_guide_lists_every_exit_code():
    guide = (ROOT / "docs" / "how-to" / "keep-running.md").read_text()
    codes = [line.split("|")[1].strip() for line in guide.splitlines() if line.startswith("| ")]
    assert codes == ["Code", "0", "1", "2", "3", "4", "5", "75", "130"]


def test_lightnings_exit_after_an_interruption_of_training_is_an_interruption():
    """Lightning answers a KeyboardInterrupt in a fit with sys.exit(1), which is not to be restarted."""
    ended = SystemExit(1)
    ended.__context__ = KeyboardInterrupt()
    assert ended_by(ended, "train").exit_code == 130
    ended.__context__ = TimeLimit()
    result = ended_by(ended, "train", ("--site", "site.yaml"))
    assert result.exit_code == 75
    again = "the same command continues after the last round"
    assert result.stderr == f"\nmedfed: stopped before its time limit (SIGUSR1); {again}\n"
    assert ended_by(SystemExit(1)).exit_code == 1
