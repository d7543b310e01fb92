"""How a command ends: one message on standard error, and an exit code that a service manager can act on.

0     done
1     refused, or failed: the message says what to do
2     a wrong command line; `medfed check`: the folder has errors (1: it has warnings)
3     this hospital does not take part: its policy refuses the study, or nobody there has approved it
4     given up: the study has ended without this site, or no hub has been heard of for `give_up_hours`
5     `medfed watch-model`: an alarm, what the model sees or says has changed
75    try again: hub, broker or sites were not reached, this machine lacked disk, memory or files, or a
      scheduler's SIGUSR1 said that the job's time will be over soon
130   interrupted by Ctrl-C or SIGTERM; the same command continues
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NoReturn

import click

from medfed.cli import messages
from medfed.errors import (
    DeclinedError,
    EndedError,
    EnrolmentError,
    ExchangeError,
    MedfedError,
    QuorumError,
    SiteError,
    StorageError,
    place_in_plugin,
)
from medfed.files import PASSING

log = logging.getLogger(__name__)

# Where a context keeps whether its command line asks for JSON.
_ASKED = "medfed.json"

REFUSED, DECLINED, GIVEN_UP, ALARM, TRY_AGAIN, INTERRUPTED = 1, 3, 4, 5, 75, 130

# Set to 1, it shows the traceback of an error of the operating system.
TRACEBACK = "MEDFED_TRACEBACK"

# What to do after Ctrl-C, by command. A hospital's service resumes by itself; a run that this process runs
# needs --resume.
_CONTINUE = dict.fromkeys(("train", "hub"), "the same command with --resume continues after the last round")
_CONTINUE_SITE = "the same command continues after the last round"
_REPEAT = "run the same command again"


class Commands(click.Group):
    """A group of commands that print medfed's errors without a traceback."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a command, with its errors handled and --json; a group does both for its own commands."""
        if cmd.callback is not None and not isinstance(cmd, click.Group):
            cmd.callback = _handle_errors(cmd.callback)
            if (name or cmd.name) not in messages.WITHOUT_RESULT:
                cmd.params.append(messages.json_option())
        super().add_command(cmd, name)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the group's own options; --json is looked for before anything else can be wrong."""
        asked = messages.asks_json(args)
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.UsageError:
            with messages.one_document(asked):
                raise
        context.meta.setdefault(_ASKED, asked)
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named; an option of it may refuse its value before the command begins."""
        with messages.one_document(ctx.meta.get(_ASKED, False)):
            try:
                return super().invoke(ctx)
            except MedfedError as error:
                _refuse(error)
            except click.ClickException as error:
                from medfed.runs import json_log

                if not json_log.is_active():
                    raise
                _end(error.format_message(), error.exit_code)


def exit_code(error: MedfedError | OSError) -> int:
    """Return the exit code of a command that ends in this error (see above)."""
    if isinstance(error, DeclinedError):
        return DECLINED
    if isinstance(error, EndedError):
        return GIVEN_UP
    if isinstance(error, EnrolmentError):
        return REFUSED
    if isinstance(error, SiteError) and isinstance(error.__cause__, (MedfedError, OSError)):
        return exit_code(error.__cause__)
    passing = isinstance(error, (ExchangeError, QuorumError, StorageError)) or (
        isinstance(error, OSError) and error.errno in PASSING
    )
    return TRY_AGAIN if passing else REFUSED


def _refuse(error: MedfedError) -> NoReturn:
    _end(str(error), exit_code(error))


def _end(message: str, code: int, *, interrupted: bool = False) -> NoReturn:
    messages.fail(message, code, interrupted=interrupted)
    sys.exit(code)


def _system_error(error: OSError, again: str) -> str:
    """Return what the operating system refused, without the file's path, which may name a patient."""
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "give this account the right to the data and run folders, and "
    else:
        remedy = f"{PASSING[error.errno]}, and " if error.errno in PASSING else ""
    return (
        f"this machine refused a file or a connection: {reason}; {remedy}{again} "
        f"(which file: {TRACEBACK}=1 shows it)"
    )


class TimeLimit(KeyboardInterrupt):
    """A scheduler's signal (SIGUSR1) that the job's time will be over soon."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those during which it was raised."""
    while error is not None:
        yield error
        error = error.__context__


def _end_interrupted(end: BaseException, remedy: str) -> NoReturn:
    """End a command that was interrupted; Lightning turns an interruption of its training into an exit."""
    asked = [one for one in _chain(end) if isinstance(one, KeyboardInterrupt)]
    if not asked:
        raise end
    if any(isinstance(one, TimeLimit) for one in asked):
        _end(f"stopped before its time limit (SIGUSR1); {remedy}", TRY_AGAIN, interrupted=True)
    _end(f"interrupted; {remedy}", INTERRUPTED, interrupted=True)


def _end_unexpected(error: Exception) -> NoReturn:
    """End a command with an error of the program: with its traceback or, in a log of JSON, with its place."""
    from medfed.runs import json_log

    of_click = isinstance(error, (click.ClickException, click.Abort, click.exceptions.Exit))
    if of_click or not json_log.is_active():
        raise error
    json_log.log_failure(error)
    _end(f"an error of the program: {type(error).__name__} ({TRACEBACK}=1 shows the traceback)", REFUSED)


def _end_thread(thrown: threading.ExceptHookArgs) -> None:
    """Log in one line that a thread beside the command ended, as a tracker's writer does on a full disk."""
    error = thrown.exc_value
    if os.environ.get(TRACEBACK) == "1" or not isinstance(error, OSError) or error.strerror is None:
        threading.__excepthook__(thrown)
        return
    thread = "a thread" if thrown.thread is None else f"thread '{thrown.thread.name}'"
    remedy = f"; {PASSING[error.errno]}" if error.errno in PASSING else ""
    log.warning("%s beside this command ended: %s%s", thread, error.strerror, remedy)


def _handle_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print medfed's errors without a traceback, and after Ctrl-C how to continue."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        threading.excepthook = _end_thread
        remedy = _CONTINUE_SITE if kwargs.get("site") else _CONTINUE.get(command.__name__, _REPEAT)
        try:
            command(*args, **kwargs)
        except MedfedError as error:
            _refuse(error)
        except OSError as error:
            # A closed pipe is click's, and an error without a number is no answer of the operating system.
            if error.errno in (None, errno.EPIPE) or os.environ.get(TRACEBACK) == "1":
                raise
            _end(_system_error(error, remedy), exit_code(error))
        except Exception as error:
            place = place_in_plugin(error)  # the error's text may hold a patient's data
            if os.environ.get(TRACEBACK) == "1":
                raise
            if place is None:
                _end_unexpected(error)
            _end(f"{place}: {type(error).__name__}; correct it ({TRACEBACK}=1 shows the traceback)", REFUSED)
        except (KeyboardInterrupt, SystemExit) as end:
            _end_interrupted(end, remedy)

    return wrapper
