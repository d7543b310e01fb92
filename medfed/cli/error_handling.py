"""How every command ends when medfed refuses something: a sentence on the error stream, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from medfed.errors import MedfedError

# Exit codes: 0 done, 1 medfed refused something and said why, 2 the command line was wrong
# (click), 130 interrupted.
REFUSED, INTERRUPTED = 1, 130


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn medfed's errors into a sentence, and Ctrl-C into the way to go on."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except MedfedError as error:
            click.secho("medfed: ", fg="red", nl=False, err=True)
            click.echo(str(error), err=True)
            sys.exit(REFUSED)
        except KeyboardInterrupt:
            # A hospital's own part goes on by itself; only a run that this process leads has to be told to.
            goes_on = AT_A_SITE if kwargs.get("site") else GOES_ON.get(command.__name__, AGAIN)
            click.echo(f"\nmedfed: interrupted; {goes_on}", err=True)
            sys.exit(INTERRUPTED)

    return wrapped


# What a person does after Ctrl-C, by command.
GOES_ON = dict.fromkeys(("train", "hub"), "the same command with --resume goes on from the last round")
AT_A_SITE = "the same command goes on from the last round"
AGAIN = "run the same command again"
