"""Random kills of hub, broker and sites do not change the final weights by a bit."""

from __future__ import annotations

import pytest
from chaos import disturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_kill_at_a_broker_costs_a_bit(tmp_path, undisturbed, seed):
    outcome = disturbed(seed, tmp_path)
    assert outcome["digest"] == undisturbed(), outcome["done"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_no_kill_at_a_folder_costs_a_bit(tmp_path, undisturbed, seed):
    outcome = disturbed(seed, tmp_path, "folder")
    assert outcome["digest"] == undisturbed(), outcome["done"]
