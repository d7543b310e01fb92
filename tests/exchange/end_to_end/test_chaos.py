"""Random kills and losses do not change the final weights by a bit, or a party says what was lost."""

from __future__ import annotations

import pytest
from chaos import disturbed

# As many runs as the slow suite bears; benchmarks/chaos.py runs hundreds.
RUNS = [
    *(("nats", False, seed) for seed in range(12)),
    *(("folder", False, seed) for seed in range(6)),
    *(("nats", True, seed) for seed in range(4)),
    *(("cluster", True, seed) for seed in range(3)),
    *(("share", True, seed) for seed in range(3)),
    *(("folder", True, seed) for seed in range(2)),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, losses, seed", RUNS)
def test_no_kill_costs_a_bit(tmp_path, undisturbed, kind, losses, seed):
    outcome = disturbed(seed, tmp_path, kind, losses=losses)
    assert outcome.get("digest") == undisturbed() or outcome.get("told"), outcome
