"""Every network of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from contract import run

from medfed.models.networks import Network
from medfed.registry import kinds
from medfed.testing import check_network
from medfed.testing._networks import build, expected_shape, inputs, smallest

torch.set_num_threads(1)

NETWORKS = kinds("networks")

# Settings that make the large ones small; a network that is not named here is tried as it is.
SMALL: dict[str, dict[str, Any]] = {
    "attention_unet": {"channels": (4, 8)},
    "densenet121": {"features": 8, "growth": 4, "blocks": (1, 1)},
    "dynunet": {"filters": (4, 8, 8), "strides": (1, 2, 2)},
    "fully_connected": {"hidden": (5, 4)},
    "resnet": {"width": 4},
    "segresnet": {"filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
    "senet": {"layers": (1, 1, 1, 1)},
    "swinunetr": {"features": 12, "depths": (1, 1, 1, 1), "window": 2, "norm": "group"},
    "unet": {"channels": (4, 8, 8)},
    "unetr": {"hidden": 24, "mlp": 24, "heads": 2, "features": 4},
    "vit": {"hidden": 24, "mlp": 24, "layers": 2, "heads": 2},
}


@pytest.mark.parametrize("check", check_network.checks)
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_network, check, NETWORKS[name](**SMALL.get(name, {})))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_its_default_settings_train(name: str) -> None:
    network: Network = NETWORKS[name]()  # type: ignore[assignment]
    size = smallest(network)
    answer = build(network, size)(inputs(size))
    answer.square().sum().backward()
    assert tuple(answer.shape) == expected_shape(network, size)


def test_listing_networks_needs_no_torch() -> None:
    code = (
        "import sys; from medfed.registry import kinds; kinds('networks'); "
        "print({'torch', 'monai', 'pytorch_lightning'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
