"""Every network of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from contract import checks_of, run

from medfed.models.networks import Network
from medfed.models.networks._shapes_only import ShapesOnly
from medfed.testing import check_network
from medfed.testing._networks import build, expected_shape, inputs, installed, small, smallest

torch.set_num_threads(1)

NETWORKS = installed()


@checks_of(check_network)
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_network, check, small(name))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_its_size_is_known_without_memory_for_it(name: str) -> None:
    """The page that a hospital agrees to counts the numbers of a network that nobody approved yet."""
    network = small(name)
    size = smallest(network)
    with ShapesOnly():
        counted = build(network, size).state_dict()
    real = build(network, size).state_dict()
    assert {key: tensor.shape for key, tensor in counted.items()} == {k: t.shape for k, t in real.items()}
    assert all(tensor.is_meta for tensor in counted.values() if tensor.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_its_default_settings_train(name: str) -> None:
    network: Network = NETWORKS[name]()  # type: ignore[assignment]
    if network.grows_from_sums:
        pytest.skip("it has no parameters, and grows from sums")
    size = smallest(network)
    answer = build(network, size)(inputs(size))
    answer.square().sum().backward()
    assert tuple(answer.shape) == expected_shape(network, size)


def test_listing_networks_needs_no_torch() -> None:
    code = (
        "import sys; from medfed.registry import kinds; kinds('networks'); "
        "print({'torch', 'monai', 'pytorch_lightning'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
