"""Run the checks of a contract as tests."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, TypeVar

import pytest

from medfed.testing import Contract, NotApplicable
from medfed.testing._contract import OF_EVERY_KIND

KindT = TypeVar("KindT")

CHECKS_OF_EVERY_KIND = {check.__name__ for check in OF_EVERY_KIND}


def checks_of(contract: Contract[Any], slow: Collection[str] = ()) -> pytest.MarkDecorator:
    """Give a test the name of every check, in turn, as `check`; the slow ones are marked."""
    assert set(slow) <= set(contract.checks)
    names = [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in contract.checks]
    return pytest.mark.parametrize("check", names)


def run(contract: Contract[KindT], check: str, kind: KindT) -> None:
    """Run a check of medfed.testing; skip the test if the check does not apply to the kind."""
    try:
        contract.checks[check](kind)
    except NotApplicable as reason:
        pytest.skip(str(reason))


def broken(contract: Contract[KindT], kind: KindT, skip: Collection[str] = ()) -> set[str]:
    """Return the names of the checks that the contract's report says are broken."""
    try:
        contract(kind, skip)
    except AssertionError as report:
        return set(re.findall(r"^  (\w+): ", str(report), re.MULTILINE))
    return set()
