"""Two processes of one site (DDP) exchange once a round."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_exchange_once_a_round_and_hold_the_same_merged_weights():
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(folder / "ddp_site.py")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = dict(re.findall(r"rank (\d) sent (\d+ weights [0-9a-f]{64})", done.stdout))
    hub = re.search(r"hub ([0-9a-f]{64})", done.stdout)[1]
    # Two rounds and the closing scores: three messages, all from rank 0.
    assert ranks == {"0": f"3 weights {hub}", "1": f"0 weights {hub}"}
    # Of twelve cases each process is given six, and trains on a batch of four.
    assert "examples 8" in done.stdout
