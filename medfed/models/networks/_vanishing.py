"""Refuses an image that a network shrinks so far that nothing of it is left to learn from.

Below a certain size no layer fails: a strided layer sees one voxel and padding, and a norm over a single
number returns its bias, whatever the image is. Such a network learns a constant without a word. The sizes
that each layer sees are found by a forward pass on torch's meta device, which computes shapes and no numbers.
"""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from medfed.errors import StudyError
from medfed.models.networks._network import format_size

_STRIDED = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = (*_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm)


def check_vanishing(network: nn.Module, name: str, inputs: int, size: tuple[int, ...]) -> None:
    """Check that a network's strided layers see more than one voxel, and its norms more than one number.

    Args:
        network: the network as it is trained.
        name: what a study calls it.
        inputs: the channels of an image.
        size: the voxels of an image or patch along each axis.

    Raises:
        StudyError: naming the network, the size and the first layer that sees too little.
    """
    for layer in vanishing_layers(network, inputs, size):
        raise StudyError(
            f"network '{name}': of an image of {format_size(size)} voxels only one number is left at its "
            f"layer '{layer}', so that it would learn the same answer for every image; take a larger "
            "data.patch, fewer or smaller strides, or another network"
        )


def vanishing_layers(network: nn.Module, inputs: int, size: tuple[int, ...]) -> list[str]:
    """Return the layers, by path, that see too little of an image, in the order in which they see it."""
    layers: list[str] = []
    handles = [
        module.register_forward_pre_hook(_noting(layers, path))
        for path, module in network.named_modules()
        if isinstance(module, (*_STRIDED, *_NORMS))
    ]
    training = network.training
    try:
        # With one image torch itself refuses a group norm of one number; with two it gives a constant.
        _run_on_meta(network.eval(), (2, inputs, *size))
    except (NotImplementedError, RuntimeError, ValueError):
        # An instance norm of one number fails, as does what computes with numbers, such as `if x.max() > 0`;
        # layers after that are not known.
        pass
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return layers


def _run_on_meta(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Run a network without numbers; its own parameters stay as they are."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    with torch.no_grad():
        torch.func.functional_call(network, shapes, (torch.empty(shape, device="meta"),))


def _noting(layers: list[str], path: str):  # type: ignore[no-untyped-def]
    def note(module: nn.Module, seen: tuple[torch.Tensor, ...]) -> None:
        if sees_one_number(module, tuple(seen[0].shape)):
            layers.append(path)

    return note


def sees_one_number(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a layer that sees tensors (B, C, *voxels) gets one voxel to stride over, or one number to norm.

    A batch norm takes its numbers from the batch, too, so it is not asked.
    """
    voxels = prod(shape[2:])
    if isinstance(module, nn.LayerNorm):
        return prod(module.normalized_shape) == 1
    if isinstance(module, nn.GroupNorm):
        return voxels * shape[1] // module.num_groups == 1
    if isinstance(module, _INSTANCE_NORMS):
        return voxels == 1
    stride = module.stride
    return voxels == 1 and max(stride if isinstance(stride, tuple) else (stride,)) > 1
