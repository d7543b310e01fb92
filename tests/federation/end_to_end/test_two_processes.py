"""Two processes of one site (DDP) exchange once a round, and train from one secret under a sum."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from process_group import run_group


@pytest.mark.slow
def test_two_processes_exchange_once_a_round_and_hold_the_same_merged_weights():
    folder = Path(__file__).parent
    done = run_group([sys.executable, str(folder / "ddp_site.py")], timeout=300, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = dict(re.findall(r"rank (\d) sent (\d+ weights [0-9a-f]{64})", done.stdout))
    hub = re.search(r"hub ([0-9a-f]{64})", done.stdout)[1]
    # Two rounds and the closing scores: three messages, all from rank 0.
    assert ranks == {"0": f"3 weights {hub}", "1": f"0 weights {hub}"}
    # Of twelve cases each process is given six, and trains on a batch of four.
    assert "examples 8" in done.stdout


@pytest.mark.slow
def test_two_processes_of_a_sum_train_from_one_secret_that_no_second_run_has():
    """Without the broadcast each process would draw its own, and their halves of the cases would overlap."""
    folder = Path(__file__).parent
    result = []
    for _ in range(2):
        done = run_group([sys.executable, str(folder / "ddp_secret_site.py")], timeout=300, folder=folder)
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
        result.append(sorted(ranks, key=lambda one: one["rank"]))
    for first, second in result:
        assert first["secret"] == second["secret"]
        assert len(first["seen"]) == len(second["seen"]) == 3
        for one, other in zip(first["seen"], second["seen"], strict=True):
            assert sorted(one + other) == list(range(12))
        # Each rank's own draws (augmentation, dropout) differ from the other's.
        assert not set(first["drawn"]) & set(second["drawn"])
    (one, _), (other, _) = result
    assert one["secret"] != other["secret"]
    assert one["drawn"] != other["drawn"]
