"""What every network is: a frozen record of its settings that builds an `nn.Module`."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, ClassVar, Literal

from medfed.errors import StudyError
from medfed.registry import Kind, kind_of

if TYPE_CHECKING:
    from torch import nn

# What a task needs, in the words of `Task.needs`.
Serves = Literal["segment", "classify", "table", "survival"]

Norm = Literal["instance", "batch", "group"]

# Group norm's usual number of groups (Wu and He 2018 use 32 for wide 2D networks; MONAI's 3D SegResNet uses
# 8).
GROUPS = 8


class Network(Kind, frozen=True):
    """A network and its settings."""

    folder: ClassVar[str] = "networks"

    # Which tasks this network can answer, in the words of `Task.needs`.
    serves: ClassVar[tuple[Serves, ...]] = ()

    # Where the last layer is found in the built module: the prefix of its tensors' names.
    head: ClassVar[str] = ""

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        """Return the network for so many inputs and outputs, with fresh weights from torch's random state.

        `size` is the patch or volume in voxels that it will see; a network that can't take it says so here
        and not an hour later. None where it isn't known; only networks with position embeddings then refuse.

        Raises:
            StudyError: if the settings contradict each other or the size doesn't suit the network.
        """
        raise NotImplementedError


def check_sides(
    network: Network, size: tuple[int, ...] | None, spatial_dims: int, multiple_of: int | tuple[int, ...]
) -> None:
    """Check that a size has the network's number of sides, each a multiple of what divides it.

    Raises:
        StudyError: naming the nearest sizes that suit.
    """
    if size is None:
        return
    check_dimensions(network, size, spatial_dims)
    factors = (multiple_of,) * spatial_dims if isinstance(multiple_of, int) else multiple_of
    if all(side > 0 and side % factor == 0 for side, factor in zip(size, factors, strict=True)):
        return
    smaller = tuple(max(side // f, 1) * f for side, f in zip(size, factors, strict=True))
    larger = tuple(-(-max(side, 1) // f) * f for side, f in zip(size, factors, strict=True))
    suits = by(smaller) if smaller == larger else f"{by(smaller)} or {by(larger)}"
    multiples = f"a multiple of {factors[0]}" if len(set(factors)) == 1 else f"multiples of {by(factors)}"
    raise StudyError(
        f"network '{kind_of(network)}': a patch of {by(size)} voxels does not suit it; "
        f"with these settings its sides must be {multiples}: {suits} would do"
    )


def check_at_least(network: Network, size: tuple[int, ...] | None, spatial_dims: int, smallest: int) -> None:
    """Check that an image of this size is not pooled away to nothing.

    Raises:
        StudyError: naming the smallest side.
    """
    if size is None:
        return
    check_dimensions(network, size, spatial_dims)
    if min(size) < smallest:
        raise StudyError(
            f"network '{kind_of(network)}': an image of {by(size)} voxels is too small for it, with these "
            f"settings each side must be at least {smallest}; resize or pad the images, "
            f"or take another network"
        )


def needs_size(network: Network, size: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the size.

    Raises:
        StudyError: if there is none, for a network whose position embeddings are made for one size.
    """
    if size is None:
        raise StudyError(
            f"network '{kind_of(network)}' is built for one size of image; the study must give a patch"
        )
    return size


def split_over_heads(network: Network, hidden: int, heads: int) -> None:
    """Check that a hidden size can be shared evenly by the attention heads.

    Raises:
        StudyError: if not.
    """
    if hidden % heads:
        raise StudyError(
            f"network '{kind_of(network)}': hidden: {hidden} is not a multiple of heads: {heads}"
        )


def check_dimensions(network: Network, size: tuple[int, ...], spatial_dims: int) -> None:
    """Check that a size has one side for each spatial dimension.

    Raises:
        StudyError: if it has more or fewer.
    """
    if len(size) != spatial_dims:
        raise StudyError(
            f"network '{kind_of(network)}': the patch {by(size)} has {len(size)} sides, the network has "
            f"spatial_dims: {spatial_dims}; give it {spatial_dims} sides or change spatial_dims"
        )


def check_more_than_one_voxel(
    network: Network, size: tuple[int, ...] | None, norm: Norm, shrinks_by: int | tuple[int, ...]
) -> None:
    """Check that an instance norm at the deepest level has more than one voxel to take a variance over.

    Raises:
        StudyError: if only one would be left; torch would say so at the first batch, without a cure.
    """
    if size is None or norm != "instance":
        return
    factors = (shrinks_by,) * len(size) if isinstance(shrinks_by, int) else shrinks_by
    if all(side <= factor for side, factor in zip(size, factors, strict=True)):
        raise StudyError(
            f"network '{kind_of(network)}': a patch of {by(size)} voxels shrinks to one voxel at the "
            f"deepest level, where norm: instance has no variance to divide by; take a larger patch, fewer "
            f"levels or norm: group"
        )


def by(size: tuple[int, ...]) -> str:
    """Return '96 x 96 x 64'."""
    return " x ".join(str(side) for side in size)


def monai_norm(norm: Norm, channels: tuple[int, ...]) -> tuple[str, dict]:
    """Return MONAI's words for a norm with learnt scale and shift; its groups divide all these channels."""
    if norm == "group":
        return ("GROUP", {"num_groups": gcd(GROUPS, *channels), "affine": True})
    return (norm.upper(), {"affine": True})


def replace_batch_norms(module: nn.Module, norm: Norm) -> nn.Module:
    """Put another norm in place of every batch norm, and return the module.

    MONAI's ResNet takes a `norm` and hands it to its first layer only, its SENet and attention U-Net take
    none; a study that asks for group norm because its hospitals differ, or because of differential privacy,
    must not keep one batch norm by accident. So those networks are built with batch norm and changed here.
    """
    from torch import nn

    if norm == "batch":
        return module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                setattr(parent, name, _instead_of(child, norm))
    return module


def _instead_of(batch_norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, norm: Norm) -> nn.Module:
    from torch import nn

    channels, eps = batch_norm.num_features, batch_norm.eps
    if norm == "group":
        return nn.GroupNorm(gcd(GROUPS, channels), channels, eps=eps)
    if isinstance(batch_norm, nn.BatchNorm3d):
        return nn.InstanceNorm3d(channels, eps=eps, affine=True)
    if isinstance(batch_norm, nn.BatchNorm2d):
        return nn.InstanceNorm2d(channels, eps=eps, affine=True)
    return nn.InstanceNorm1d(channels, eps=eps, affine=True)


def drop_unused_norms(vit: nn.Module) -> nn.Module:
    """Take out the norms that MONAI's transformer blocks hold for cross attention and never use.

    Parameters that never get a gradient stop DistributedDataParallel, and would cross the wire for nothing.
    """
    from torch import nn

    for module in list(vit.modules()):
        if getattr(module, "with_cross_attention", None) is False and hasattr(module, "norm_cross_attn"):
            module.norm_cross_attn = nn.Identity()
    return vit
