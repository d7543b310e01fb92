"""A contract: the named checks that every kind of a registry must pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import msgspec

from medfed.registry import Kind, summary

KindT = TypeVar("KindT")


class NotApplicable(Exception):
    """A check that does not concern this kind, with the reason."""


class Contract(Generic[KindT]):
    """The checks of one registry; calling it with a kind runs them all.

    `checks` holds them by name, for a test that runs each by itself. A check raises AssertionError where the
    kind breaks the contract, and `NotApplicable` where it does not concern the kind.
    """

    def __init__(self, noun: str, checks: Iterable[Callable[[KindT], None]] = ()) -> None:
        self.noun = noun
        self.checks: dict[str, Callable[[KindT], None]] = {check.__name__: check for check in checks}

    def check(self, function: Callable[[KindT], None]) -> Callable[[KindT], None]:
        """Add a function to the checks, by its name; for use as a decorator."""
        self.checks[function.__name__] = function
        return function

    def __call__(self, kind: KindT, skip: Collection[str] = ()) -> None:
        """Run every check on a kind, except those named in `skip`.

        Raises:
            AssertionError: naming each check that fails, and why.
        """
        unknown = sorted(set(skip) - set(self.checks))
        if unknown:
            raise ValueError(f"skip: no check '{unknown[0]}'; there are {', '.join(self.checks)}")
        failures = {name: self._failure(name, kind) for name in self.checks if name not in skip}
        errors = {name: error for name, error in failures.items() if error is not None}
        if errors:
            lines = [
                f"  {name}: {type(error).__name__}: {_first_line(error)}" for name, error in errors.items()
            ]
            raise AssertionError(
                "\n".join([f"{kind!r} breaks {len(errors)} promises of a {self.noun}:", *lines])
            ) from next(iter(errors.values()))

    def _failure(self, name: str, kind: KindT) -> Exception | None:
        try:
            self.checks[name](kind)
        except NotApplicable:
            return None
        except Exception as error:  # noqa: BLE001 - a kind may fail in any way; reported together
            return error
        return None


def a_study_file_can_hold_it(kind: Kind) -> None:
    """It survives JSON unchanged, and its settings cannot be changed afterwards."""
    assert msgspec.json.decode(msgspec.json.encode(kind), type=type(kind)) == kind
    with raises(AttributeError, "immutable"):
        kind.anything = 1  # type: ignore[attr-defined]


def its_docstring_begins_with_a_sentence(kind: Kind) -> None:
    """`medfed kinds` shows the first line."""
    first = summary(type(kind))
    assert len(first) > 20, f"expected a sentence, found {first!r}"
    assert first.endswith((".", ";", ":")), f"expected a sentence in one line, found {first!r}"


# What every kind that a study file names keeps.
OF_EVERY_KIND = (a_study_file_can_hold_it, its_docstring_begins_with_a_sentence)


class Raised:
    """The error that a block has raised, after it."""

    error: Exception


@contextmanager
def raises(error: type[Exception], match: str) -> Iterator[Raised]:
    """Expect the block to raise this error, with a message in which a pattern is found."""
    raised = Raised()
    try:
        yield raised
    except error as caught:
        if not re.search(match, str(caught)):
            raise AssertionError(f"expected an error matching {match!r}, found: {caught}") from caught
        raised.error = caught
    else:
        raise AssertionError(f"expected a {error.__name__} matching {match!r}, but nothing was raised")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "(no message)")
