"""Two hospitals in a real Flower network end with the model that medfed's own exchange gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flower_network import flower_network, has_flower, start_trainer, write_app
from network_trainer import CASES, ROUNDS, Model, in_memory, largest_difference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_flower(), reason="Flower is not installed: `make flower` builds .venv-flower"),
]

SCRIPT = Path(__file__).parents[1] / "network_trainer.py"

# As in ../test_flower.py: FedAvg in float32, against medfed's in float64.
BOUND = 5e-6


def test_a_real_network_of_two_hospitals_ends_with_medfeds_model(tmp_path):
    start = tmp_path / "start.npz"
    np.savez(start, **{name: tensor.numpy() for name, tensor in Model().state_dict().items()})
    for site in CASES:
        (tmp_path / site).mkdir()
    trainers = [
        start_trainer(
            SCRIPT,
            site,
            "flower",
            str(tmp_path / f"{site}-handoff"),
            str(tmp_path / site),
            str(ROUNDS),
            log=tmp_path / f"{site}.log",
        )
        for site in CASES
    ]
    try:
        with flower_network(tmp_path, list(CASES)) as network:
            out = tmp_path / "final.npz"
            log = network.run(write_app(tmp_path / "app"), rounds=ROUNDS, start=start, out=out)
        assert out.exists(), log
        assert [trainer.wait(60) for trainer in trainers] == [0, 0], log
    finally:
        for trainer in trainers:
            trainer.kill()
    expected = in_memory()
    with np.load(out) as merged:
        assert largest_difference(expected, merged) < BOUND
        for site in CASES:
            final = torch.load(tmp_path / site / "final.pt")
            assert largest_difference({name: torch.as_tensor(merged[name]) for name in expected}, final) == 0
    # The sites' numbers reach the leader: the loss of training, and the final model's score.
    assert "train/loss" in log
    assert "val/loss" in log
