"""Log lines as JSON for a collector of logs: `medfed --log-json`, or MEDFED_LOG_JSON=1.

Each line on standard error is one object: `time` (UTC), `level`, `logger`, `message`, and where they are
known `site` and `round`; `error` is the class of an exception, never its text. All but printable ASCII is
escaped, so that no text of another party breaks a line or reaches a terminal. A collector may stand outside
the hospital, and other packages may log what they read: only lines of medfed's own loggers are written out.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from medfed.wire.untrusted_text import MAX_CHARACTERS

VARIABLE = "MEDFED_LOG_JSON"
PROGRESS = "medfed.progress"
OWN = "medfed"

# The site whose code runs, where one process trains several.
RUNNING_SITE: ContextVar[str | None] = ContextVar("running_site", default=None)


class _Json(logging.Formatter):
    """Formats a record as one line; `site` is that of this process, if it is one hospital's."""

    site: str | None = None

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object, without what may hold a patient's data."""
        site = getattr(record, "site", None) or RUNNING_SITE.get() or self.site
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        known = {"site": site, "round": getattr(record, "round", None)}
        line |= {key: value for key, value in known.items() if value is not None}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return ascii_json(line)


def _message(record: logging.LogRecord) -> str:
    if record.name != OWN and not record.name.startswith(f"{OWN}."):
        return "withheld: a message of another package may hold a patient's data; without JSON it is shown"
    text = record.getMessage()
    left = len(text) - MAX_CHARACTERS
    return text if left <= 0 else f"{text[:MAX_CHARACTERS]}... ({left} more characters)"


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; of one that cannot be formatted only its place: Python prints arguments."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - whatever a message's arguments raise
            where = f"{record.module}:{record.lineno}"
            text = f"a log line of {where} cannot be written ({type(error).__name__})"
            line = self.format(logging.LogRecord(OWN, logging.ERROR, "", 0, "%s", (text,), None))
        _write(line)


def _write(line: str) -> None:
    # Looked up each time: standard error may be another one while a command runs, and be closed at its end.
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


_active: _Json | None = None


def is_active() -> bool:
    """Return whether log lines are written as JSON."""
    return _active is not None


def set_site(name: str) -> None:
    """Let the lines of this process name the hospital that it works for."""
    if _active is not None:
        _active.site = name


@contextmanager
def json_logs() -> Iterator[None]:
    """Write what is logged, warned of or fails in a thread as JSON until the block ends."""
    global _active
    root, handler, formatter = logging.getLogger(), _Handler(), _Json()
    handler.setFormatter(formatter)
    former, thread_hook = _active, threading.excepthook
    root.addHandler(handler)
    show = warnings.showwarning
    logging.captureWarnings(True)
    threading.excepthook = lambda failed: log_failure(failed.exc_value)
    _active = formatter
    try:
        yield
    finally:
        _active, threading.excepthook = former, thread_hook
        logging.captureWarnings(False)
        warnings.showwarning = show
        root.removeHandler(handler)


def write_progress(text: str, round: int | None = None) -> None:
    """Write a line of a run's progress."""
    write_line(text, logging.INFO, PROGRESS, round)


def write_line(text: str, level: int, logger: str = OWN, round: int | None = None) -> None:
    """Write a line to standard error at once, also one below the level of warnings, which loggers drop."""
    record = logging.LogRecord(logger, level, "", 0, "%s", (text,), None)
    record.round = round
    _write((_active or _Json()).format(record))


def log_failure(error: BaseException | None) -> None:
    """Write where an error of the program arose, without its text, which may hold a patient's data."""
    if error is None or isinstance(error, SystemExit):
        return
    write_line(f"{type(error).__name__} at {_place(error.__traceback__)}", logging.CRITICAL)


def _place(trace: TracebackType | None) -> str:
    """Return the module and line where an error arose, innermost last, of medfed's own code."""
    own = [
        f"{frame.f_globals['__name__']}:{line}"
        for frame, line in traceback.walk_tb(trace)
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == OWN
    ]
    return " > ".join(own) or "a place outside medfed"


def ascii_json(value: Any, indent: int | None = None) -> str:
    r"""Return a plain value as JSON in printable ASCII: what breaks a line or steers a terminal is escaped.

    >>> ascii_json({"a": "first\nsecond\x1b[8m\x7f\u202e"})
    '{"a": "first\\nsecond\\u001b[8m\\u007f\\u202e"}'
    """
    return json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")
