"""Run one check of a contract as a test."""

from __future__ import annotations

from typing import TypeVar

import pytest

from medfed.testing import Contract, NotApplicable

KindT = TypeVar("KindT")


def run(contract: Contract[KindT], check: str, kind: KindT) -> None:
    """Run a check of medfed.testing; skip the test if the check does not apply to the kind."""
    try:
        contract.checks[check](kind)
    except NotApplicable as reason:
        pytest.skip(str(reason))
