"""What a command says: its result in words or, with --json, as one document; notes; why it failed.

Every command of a `Commands` group has --json unless it is in `WITHOUT_RESULT`. Under --json standard output
holds one JSON document and nothing else: what else is printed goes to standard error. A command hands its
document to `answer`; one that fails leaves {"error": ..., "exit": N}. docs/reference/json.md lists the keys.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from medfed.wire.untrusted_text import for_terminal

FLAG = "--json"
# Commands that print no result, and why.
WITHOUT_RESULT = {"broker": "runs until it is stopped; what it prints is a log (--log-json)"}


@dataclass
class _Held:
    """The document of a command under --json; `silent` if another process prints it."""

    document: Mapping[str, Any] | None = None
    silent: bool = False


_held: ContextVar[_Held | None] = ContextVar("held", default=None)


def json_option() -> click.Option:
    """Return the option --json, which is read from the command line before it is parsed (`asks_json`)."""
    return click.Option(
        [FLAG], is_flag=True, expose_value=False, help="Print the result as one JSON document."
    )


def asks_json(arguments: list[str]) -> bool:
    """Return whether a command line asks for JSON, even one that cannot be parsed."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return FLAG in before


def is_asked() -> bool:
    """Return whether the result is to be a document."""
    return _held.get() is not None


def answer(document: Mapping[str, Any]) -> bool:
    """Keep a command's result for --json; return whether that is asked for, and words are to be left out."""
    held = _held.get()
    if held is None:
        return False
    held.document = document
    return True


def answer_nothing() -> None:
    """Print no document: another process of the same command does."""
    if (held := _held.get()) is not None:
        held.silent = True


def say(text: str = "", *, nl: bool = True) -> None:
    """Print a line of a result in words, unless a document is asked for."""
    if not is_asked():
        click.echo(text, nl=nl)


def note(text: str, *, err: bool = True) -> None:
    """Print a line that belongs to no result."""
    from medfed.runs import json_log

    if json_log.is_active():
        json_log.write_line(text, logging.INFO)
    else:
        click.echo(for_terminal(text), err=err)


def fail(text: str, code: int, *, interrupted: bool = False) -> None:
    """Print why a command fails, on standard error and, with --json, as its document."""
    from medfed.runs import json_log

    answer({"error": text, "exit": code})
    if json_log.is_active():
        json_log.write_line(text, logging.WARNING if interrupted else logging.ERROR)
    elif interrupted:
        click.echo(f"\nmedfed: {text}", err=True)
    else:
        click.secho("medfed: ", fg="red", nl=False, err=True)
        click.echo(for_terminal(text), err=True)


@contextmanager
def one_document(asked: bool) -> Iterator[None]:
    """Print what the block answers, or why it failed, as the only thing on standard output."""
    if not asked or _held.get() is not None:
        yield
        return
    held, output = _Held(), sys.stdout
    token = _held.set(held)
    try:
        with redirect_stdout(sys.stderr):
            yield
            if held.document is None and not held.silent:
                raise RuntimeError(f"{FLAG}: the command printed no result")
    except BaseException as end:
        held.document = _ended_by(end, held.document)
        raise
    finally:
        _held.reset(token)
        if held.document is not None and not held.silent:
            click.echo(_to_json(held.document), file=output)


def _to_json(document: Mapping[str, Any]) -> str:
    from medfed.runs.json_log import ascii_json

    return ascii_json(_plain(document), indent=2)


def _ended_by(end: BaseException, document: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the document of a command that ends in this exception, which may be an exit with a result."""
    if isinstance(end, click.exceptions.Exit):  # such as that of --help
        return document
    if isinstance(end, SystemExit):
        code = end.code if isinstance(end.code, int) else 1
        return document or {"error": "the command ended without a result", "exit": code}
    if isinstance(end, click.ClickException):
        return {"error": end.format_message(), "exit": end.exit_code}
    if isinstance(end, click.Abort):
        return {"error": "aborted: a question was not answered with yes", "exit": 1}
    # The error's own text may hold a patient's data.
    return {"error": f"an error of the program: {type(end).__name__}; see standard error", "exit": 1}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, no number that is none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{FLAG}: a result holds a value of type {type(value).__name__}, which JSON has not")
