"""Two hospitals in a real NVFlare network end with the model that medfed's own exchange gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flower_network import start_trainer
from network_trainer import CASES, ROUNDS, Model, in_memory, largest_difference
from nvflare_network import has_nvflare, nvflare_network, write_job, write_profile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not has_nvflare(), reason="NVFlare is not installed: pip install -c constraints.txt -e '.[nvflare]'"
    ),
]

SCRIPT = Path(__file__).parents[1] / "network_trainer.py"

# As in ../test_flower.py: FedAvg in float32, against medfed's in float64.
BOUND = 5e-6


def test_a_real_network_of_two_hospitals_ends_with_medfeds_model(tmp_path):
    start, out, trainers = tmp_path / "start.npz", tmp_path / "final.npz", []
    np.savez(start, **{name: tensor.numpy() for name, tensor in Model().state_dict().items()})
    try:
        with nvflare_network(tmp_path, list(CASES)) as network:
            for site in CASES:
                (tmp_path / site).mkdir()
                profile = write_profile(tmp_path, site)
                words = (site, "nvflare", str(profile), str(tmp_path / site), str(ROUNDS))
                trainers.append(start_trainer(SCRIPT, *words, log=tmp_path / f"{site}.log"))
            network.run(write_job(tmp_path / "job", list(CASES), ROUNDS, start, out))
            assert [trainer.wait(60) for trainer in trainers] == [0, 0]
    finally:
        for trainer in trainers:
            trainer.kill()
    expected = in_memory()
    with np.load(out) as merged:
        assert largest_difference(expected, merged) < BOUND
        for site in CASES:
            final = torch.load(tmp_path / site / "final.pt")
            assert largest_difference({name: torch.as_tensor(merged[name]) for name in expected}, final) == 0
