"""How a command ends when medfed refuses something: one message on standard error, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import click

from medfed.errors import MedfedError
from medfed.wire.untrusted_text import for_terminal

# Exit codes. Besides them: 0 is success, and click exits with 2 for a wrong command line.
REFUSED, INTERRUPTED = 1, 130

# What to do after Ctrl-C, by command. A hospital's service resumes by itself; a run that this process runs
# needs --resume.
_CONTINUE = dict.fromkeys(("train", "hub"), "the same command with --resume continues after the last round")
_CONTINUE_SITE = "the same command continues after the last round"
_REPEAT = "run the same command again"


class Commands(click.Group):
    """A group of commands that print medfed's errors without a traceback."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a command, with its errors handled; a group handles those of its own commands."""
        if cmd.callback is not None and not isinstance(cmd, click.Group):
            cmd.callback = _handle_errors(cmd.callback)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named; an option of it may refuse its value before the command begins."""
        try:
            return super().invoke(ctx)
        except MedfedError as error:
            _refuse(error)


def _refuse(error: MedfedError) -> NoReturn:
    click.secho("medfed: ", fg="red", nl=False, err=True)
    click.echo(for_terminal(str(error)), err=True)
    sys.exit(REFUSED)


def _handle_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print medfed's errors without a traceback, and after Ctrl-C how to continue."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except MedfedError as error:
            _refuse(error)
        except KeyboardInterrupt:
            remedy = _CONTINUE_SITE if kwargs.get("site") else _CONTINUE.get(command.__name__, _REPEAT)
            click.echo(f"\nmedfed: interrupted; {remedy}", err=True)
            sys.exit(INTERRUPTED)

    return wrapper
