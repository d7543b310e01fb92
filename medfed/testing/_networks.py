"""The contract of a network: it trains on the sizes it takes, and the seed decides its weights."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from typing import Any, get_args

import msgspec
import torch
from torch import nn

from medfed.errors import StudyError
from medfed.models.networks import Network
from medfed.models.networks._vanishing import vanishing_layers
from medfed.models.tasks import Needs
from medfed.registry import kinds
from medfed.testing._contract import OF_EVERY_KIND, Contract, NotApplicable, raises
from medfed.wire.weights import digest, weights_of

check_network: Contract[Network] = Contract("network", OF_EVERY_KIND)

INPUTS, OUTPUTS, FEATURES = 2, 3, 7

# Settings that make large networks small; a network that is not named here is tried as it is.
SMALL: dict[str, dict[str, Any]] = {
    "attention_unet": {"channels": (4, 8)},
    "boosted_trees": {"trees": 2, "depth": 2, "bins": 8},
    "densenet121": {"features": 8, "growth": 4, "blocks": (1, 1)},
    "dynunet": {"filters": (4, 8, 8), "strides": (1, 2, 2)},
    "fully_connected": {"hidden": (5, 4)},
    "hugging_face": {"arguments": {"embedding_size": 8, "hidden_sizes": [16, 16], "depths": [1, 1]}},
    "monai_classifier": {"arguments": {"init_features": 8, "growth_rate": 4, "block_config": [1, 1]}},
    "monai_segmenter": {"arguments": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}},
    "resnet": {"width": 4},
    "segresnet": {"filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
    "senet": {"layers": (1, 1, 1, 1)},
    "swinunetr": {"features": 12, "depths": (1, 1, 1, 1), "window": 2, "norm": "group"},
    "unet": {"channels": (4, 8, 8)},
    "unetr": {"hidden": 24, "mlp": 24, "heads": 2, "features": 4},
    "vit": {"hidden": 24, "mlp": 24, "layers": 2, "heads": 2},
}


def small(name: str) -> Network:
    """Return a network of the registry with settings that make it small."""
    return kinds("networks")[name](**SMALL.get(name, {}))  # type: ignore[return-value]


def installed() -> dict[str, type[Network]]:
    """Return the networks of the registry whose packages are installed here."""
    found: dict[str, type[Network]] = kinds("networks")  # type: ignore[assignment]
    return {name: one for name, one in found.items() if all(map(find_spec, one.packages))}


def sees_images(network: Network) -> bool:
    return "segment" in network.serves or "classify" in network.serves


def axes(network: Network) -> int:
    """Return the number of axes of a network's images: 2 of one for planes only, else 3."""
    return getattr(network, "spatial_dims", None) or 3


def smallest(network: Network) -> tuple[int, ...] | None:
    """Return the smallest cube, or two of them in a row, that the network says it takes; None for a table.

    Of a network for planes it is a square, or two.
    """
    if not sees_images(network):
        return None
    for side in (8, 16, 32, 64):
        for size in ((side,) * axes(network), (2 * side,) + (side,) * (axes(network) - 1)):
            if taken_or_refused(network, size) is not None:
                return size
    raise AssertionError("no cube of up to 64 voxels a side suits it")


def build(network: Network, size: tuple[int, ...] | None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return network.build(INPUTS if sees_images(network) else FEATURES, OUTPUTS, size)


def inputs(size: tuple[int, ...] | None) -> torch.Tensor:
    shape = (2, FEATURES) if size is None else (2, INPUTS, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def expected_shape(network: Network, size: tuple[int, ...] | None) -> tuple[int, ...]:
    return (2, OUTPUTS, *size) if size and "segment" in network.serves else (2, OUTPUTS)


@check_network.check
def it_says_which_tasks_it_serves(network: Network) -> None:
    assert network.serves
    assert set(network.serves) <= set(get_args(Needs))


@check_network.check
def every_parameter_learns(network: Network) -> None:
    """A parameter without a gradient stops DistributedDataParallel, and would cross the wire for nothing."""
    size = smallest(network)
    module = build(network, size)
    answer = module(inputs(size))
    assert tuple(answer.shape) == expected_shape(network, size)
    if network.grows_from_sums:
        assert list(module.parameters()) == []
        raise NotApplicable("it has no parameters, and grows from sums")
    answer.square().sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@check_network.check
def the_seed_decides_the_weights(network: Network) -> None:
    if network.grows_from_sums:
        raise NotApplicable("it begins without a weight")
    size = smallest(network)
    first, again, other = (weights_of(build(network, size, seed)) for seed in (0, 0, 1))
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)


@check_network.check
def no_tensor_has_two_names(network: Network) -> None:
    state = build(network, smallest(network)).state_dict()
    places = [tensor.data_ptr() for tensor in state.values() if tensor.numel()]
    assert len(places) == len(set(places))


@check_network.check
def the_head_is_there_and_gives_the_outputs(network: Network) -> None:
    if network.grows_from_sums:
        raise NotApplicable("it has no layers")
    state = build(network, smallest(network)).state_dict()
    head = {name: tensor for name, tensor in state.items() if name.startswith(network.head + ".")}
    assert head
    assert len(head) < len(state)
    assert list(head.values())[-1].shape[0] == OUTPUTS


def taken_or_refused(network: Network, size: tuple[int, ...]) -> nn.Module | None:
    try:
        return network.build(INPUTS, OUTPUTS, size)
    except StudyError:
        return None


@check_network.check
def a_size_is_refused_or_works(network: Network) -> None:
    if not sees_images(network):
        raise NotApplicable("a table has no size")
    taken = 0
    for size in itertools.product(*((8, 12, 16, 33), (16,), (16, 18))[: axes(network)]):
        module = taken_or_refused(network, size)
        if module is None:
            continue
        taken += 1
        assert tuple(module.train()(inputs(size)).shape) == expected_shape(network, size)
    assert taken < 8 or "classify" in network.serves


@check_network.check
def a_size_of_which_nothing_is_left_is_refused(network: Network) -> None:
    """A group norm over one number returns its bias: the network would learn one answer for all images."""
    if not sees_images(network):
        raise NotApplicable("a table has no size")
    norms = ("instance", "batch", "group") if hasattr(network, "norm") else (None,)
    for norm, side in itertools.product(norms, (4, 8, 16, 32)):
        one = network if norm is None else msgspec.structs.replace(network, norm=norm)
        module = taken_or_refused(one, (side,) * axes(network))
        assert module is None or vanishing_layers(module, INPUTS, (side,) * axes(network)) == []


@check_network.check
def a_study_is_refused_for_the_sizes_that_building_refuses(network: Network) -> None:
    if not sees_images(network):
        raise NotApplicable("a table has no size")
    for cube in ((4, 4, 4), (8, 8, 8), (12, 16, 18), (32, 32, 32)):
        size = cube[: axes(network)]
        if taken_or_refused(network, size) is None:
            with raises(StudyError, "network '"):
                network.check_size(size)
        else:
            network.check_size(size)


@check_network.check
def a_size_of_other_dimensions_is_refused(network: Network) -> None:
    if not sees_images(network):
        raise NotApplicable("a table has no size")
    own = axes(network)
    with raises(StudyError, rf"has {5 - own} sides, the network has spatial_dims: {own}"):
        network.build(INPUTS, OUTPUTS, (64,) * (5 - own))


@check_network.check
def it_works_in_two_dimensions(network: Network) -> None:
    if not sees_images(network):
        raise NotApplicable("a table has no dimensions")
    flat = msgspec.structs.replace(network, spatial_dims=2)
    size = smallest(flat)
    assert tuple(build(flat, size)(inputs(size)).shape) == expected_shape(flat, size)


@check_network.check
def the_norm_asked_for_is_the_norm_it_has(network: Network) -> None:
    if not hasattr(network, "norm"):
        raise NotApplicable("this network's norm cannot be chosen")
    for norm in ("instance", "batch", "group"):
        module = msgspec.structs.replace(network, norm=norm).build(INPUTS, OUTPUTS, (64, 64, 64))
        has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        assert has_batch_norm == (norm == "batch")
        if norm != "batch":
            kind = {"instance": nn.InstanceNorm3d, "group": nn.GroupNorm}[norm]
            assert any(isinstance(m, kind) for m in module.modules())
