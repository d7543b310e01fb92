"""Every error that medfed raises on purpose, drawn as a tree.

    MedfedError
    ├── StudyError        a study or site file: file, key path, what was found, what is allowed
    │   └── DeclinedError     this hospital does not take part: its policy or its people say no
    ├── DataError         a hospital's folder: its cases, its splits, its labels as a whole
    │   ├── TooFewPatientsError   so few patients that sums over them are withheld
    │   └── ImageError    one image or series that is refused instead of read wrongly
    │       └── LabelError    a label that does not fit its image or its classes
    ├── UpdateError       what a site sent does not fit the round: site, round, tensor
    │   └── EgressError   something that is not declared to leave a hospital
    ├── WireError         received bytes that are not what they claim to be
    ├── RuleError         updates that a rule cannot merge
    ├── ExchangeError     a message that could not be delivered or fetched
    │   ├── DeadlineError     it did not come in time
    │   ├── EndedError        the study has ended, or its hub is gone for good
    │   └── EnrolmentError    a federation's folder, key, request or kit that is not as it must be
    ├── QuorumError       fewer sites answered than the study's minimum
    ├── SiteError         training at a site stopped: which site, which round, why
    ├── RunError          a run folder that is missing, of another study, or damaged
    │   └── StorageError      it cannot be written for the time being: its disk is full
    ├── PrivacyError      a privacy mechanism that cannot keep its promise here
    │   └── LedgerError       a hospital's privacy ledger: it was changed, or has no room for the study
    ├── AuditError        an audit log that does not verify
    └── RegistryError     a module of a registry's folder that does not hold the one kind it is named after

A message says whose, where, what was found, what was expected and what to do. It never holds a
patient's data: a case is named by its salted id, a header by its tag name and never by its value, a
file not by its path.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from pathlib import PurePath
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


# What msgspec raises for bytes that are not the JSON that is expected: its own errors cover neither texts
# that are no UTF-8 nor lists nested too deep. Whoever decodes a file or what others wrote catches all three.
if TYPE_CHECKING:
    from msgspec import MsgspecError

    DECODING_ERRORS: tuple[type[MsgspecError], type[UnicodeDecodeError], type[RecursionError]]
else:

    def __getattr__(name):
        # msgspec is imported where these are caught: `medfed --help` decodes nothing.
        if name != "DECODING_ERRORS":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import msgspec

        return globals().setdefault(name, (msgspec.MsgspecError, UnicodeDecodeError, RecursionError))


class MedfedError(Exception):
    """The root: `except medfed.MedfedError` catches whatever medfed refuses."""


class StudyError(MedfedError):
    """A study or site file says something that medfed cannot do."""


class DeclinedError(StudyError):
    """A hospital does not take part: its policy refuses the study, or nobody there has approved it."""


class DataError(MedfedError):
    """A hospital's folder cannot be used as it is."""


class TooFewPatientsError(DataError):
    """A hospital withholds sums over all its patients, because they are too few."""


class ImageError(DataError):
    """An image is refused, because reading it could give a wrong volume."""


class LabelError(ImageError):
    """A label does not fit its image's grid or the task's classes."""


class UpdateError(MedfedError):
    """An update does not fit the round and the model it answers."""


class EgressError(UpdateError):
    """Something that is not declared to leave a hospital was about to."""


class WireError(MedfedError):
    """Received bytes are damaged, malformed or not allowed."""


class ForgedError(WireError):
    """What was received cannot become right by waiting: another party signed it, or it is too large."""


class RuleError(MedfedError):
    """A rule cannot merge these updates."""


class ExchangeError(MedfedError):
    """A message could not be delivered or fetched."""


class DeadlineError(ExchangeError):
    """A message did not arrive before its deadline."""


class EndedError(ExchangeError):
    """The study has ended, or its hub has shown no sign of life for long; trying again does not help."""


class EnrolmentError(ExchangeError):
    """A federation's folder, key, request or kit is not as it must be; trying again does not help."""


class QuorumError(MedfedError):
    """Fewer sites answered a round than the study's minimum.

    model: the last merged model (`GlobalModel`) of a federation in one process, as the hub holds it.
    """

    model: Any = None


class SiteError(MedfedError):
    """Training at one site stopped.

    model: the last merged model (`GlobalModel`) of a federation in one process.
    """

    model: Any = None


class RunError(MedfedError):
    """A run folder is missing, damaged or belongs to another study."""


class StorageError(RunError):
    """A run folder cannot be written for the time being, as when its disk is full."""


class PrivacyError(MedfedError):
    """A privacy mechanism cannot keep its promise in this study."""


class LedgerError(PrivacyError):
    """A hospital's privacy ledger was changed or is incomplete, or has no room for a study."""


class AuditError(MedfedError):
    """An audit log does not verify."""


class RegistryError(MedfedError):
    """A module of a registry's folder does not hold exactly one kind that is named after it."""


def deprecated(
    replacement: str, *, since: str, until: str
) -> Callable[[Callable[_Params, _Result]], Callable[_Params, _Result]]:
    """Return a decorator that warns at each call of a function and names what to call instead.

    `since` and `until` are versions of medfed, such as '0.2': the first that warns, and the first without the
    function. A test fails once the version `until` is reached and the function is still there.
    """

    def decorate(function: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
        @functools.wraps(function)
        def wrapper(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
            warnings.warn(
                f"{function.__qualname__} is deprecated since medfed {since} and will be removed in {until}; "
                f"use {replacement}",
                DeprecationWarning,
                stacklevel=2,
            )
            return function(*args, **kwargs)

        return wrapper

    return decorate


# Beside a plug-in's name, its package's name in this process holds the first digits of its digest.
PLUGIN_PACKAGE = "medfed_plugin_{name}_{digits}"
_PLUGIN_MODULE = re.compile(r"medfed_plugin_([a-z][a-z0-9_]*)_[0-9a-f]{16}((?:\.\w+)*)")


def place_in_plugin(error: BaseException) -> str | None:
    """Return where in a plug-in's code an error arose, such as "plug-in 'age': task.py, line 12".

    It is the innermost line of a plug-in; None if no code of a plug-in was running. An error of another
    process (`exchange/_worker_link.py`) brings it along.
    """
    found: str | None = getattr(error, "place_in_plugin", None)
    for frame, line in walk_tb(error.__traceback__):
        module = _PLUGIN_MODULE.fullmatch(str(frame.f_globals.get("__name__", "")))
        if module is not None:
            parts, file = module[2].split(".")[1:], PurePath(frame.f_code.co_filename).name
            folders = parts if file == "__init__.py" else parts[:-1]
            found = f"plug-in '{module[1]}': {'/'.join([*folders, file])}, line {line}"
    return found
