"""Every tracker of the registry keeps the contract of medfed.testing."""

from __future__ import annotations

import pytest
from contract import checks_of, run

from medfed.registry import kinds
from medfed.testing import check_tracker

# What a tracker must be given.
SETTINGS = {"mlflow": {"url": "http://127.0.0.1:1"}}


@checks_of(check_tracker)
@pytest.mark.parametrize("name", sorted(kinds("trackers")))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_tracker, check, kinds("trackers")[name](**SETTINGS.get(name, {})))  # type: ignore[arg-type]
