"""The base of all networks: a frozen record of settings that builds an `nn.Module`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import msgspec

from medfed.errors import StudyError
from medfed.models._needs import Needs
from medfed.registry import Kind, kind_of

if TYPE_CHECKING:
    from torch import nn

Norm = Literal["instance", "batch", "group"]

# The largest number of groups of a group norm (Wu and He 2018 use 32 for wide 2D networks,
# MONAI's SegResNet 8).
GROUPS = 8


class Definition(NamedTuple):
    """A class of monai.networks.nets by name, and the arguments that build a network of it."""

    name: str
    arguments: dict[str, Any]


class Network(Kind, frozen=True):
    """A network and its settings."""

    folder: ClassVar[str] = "networks"

    # The `Task.needs` of the tasks that it can be used for.
    serves: ClassVar[tuple[Needs, ...]] = ()

    # The packages that it imports besides medfed's own requirements, and what installs each.
    packages: ClassVar[Mapping[str, str]] = {}

    # The path of the last layer in the built module: the prefix of its tensors' names.
    head: ClassVar[str] = ""

    # Whether it has no parameters, and grows at the hub from sums: the rule of its own name must merge it.
    grows_from_sums: ClassVar[bool] = False

    # Whether a missing value of a table may reach it, as NaN.
    takes_missing: ClassVar[bool] = False

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        """Return the network with these numbers of inputs and outputs, with weights
        from torch's random state.

        `size` is the patch or volume in voxels that it will see; a network that can't take it raises here,
        not an hour later. It is None if unknown; only networks with position embeddings refuse that.

        Raises:
            StudyError: if the settings contradict each other or the size doesn't suit the network.
        """
        raise NotImplementedError

    def definition(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> Definition | None:
        """Return how MONAI alone builds it, for an exported bundle; None if MONAI alone cannot."""
        return None

    def fitted(self, spacing_mm: tuple[float, ...] | None, patch: tuple[int, ...] | None) -> Self:
        """Return the network with what it takes from the voxel size and the patch; most take nothing.

        Raises:
            StudyError: if it needs one that is None, or the patch does not suit it.
        """
        return self

    def check_size(self, size: tuple[int, ...] | None) -> None:
        """Check a size without torch, as a study is read; `build` calls it, too.

        Raises:
            StudyError: as `build`.
        """


class SpatialNetwork(Network, frozen=True):
    """A network for images of two or three axes, and what it can check of their size."""

    # The axes of its images; None takes the study's `data.spatial_dims`.
    spatial_dims: Literal[2, 3] | None = None

    @property
    def dims(self) -> int:
        """The number of axes of its images: 3 if nothing says otherwise."""
        return self.spatial_dims or 3

    def check_dimensions(self, size: tuple[int, ...]) -> None:
        """Check that a size has one side for each spatial dimension.

        Raises:
            StudyError: if it has more or fewer.
        """
        dims = self.dims
        if len(size) != dims:
            raise StudyError(
                f"network '{kind_of(self)}': the patch {format_size(size)} has {len(size)} sides, the "
                f"network has spatial_dims: {dims}; give it {dims} sides or change spatial_dims"
            )

    def check_sides(self, size: tuple[int, ...] | None, multiple_of: int | tuple[int, ...]) -> None:
        """Check that a size has the network's number of sides, each a multiple of `multiple_of`.

        Raises:
            StudyError: naming the nearest valid sizes.
        """
        if size is None:
            return
        self.check_dimensions(size)
        factors = _per_axis(multiple_of, size)
        if all(side > 0 and side % factor == 0 for side, factor in zip(size, factors, strict=True)):
            return
        smaller = format_size(max(side // f, 1) * f for side, f in zip(size, factors, strict=True))
        larger = format_size(-(-max(side, 1) // f) * f for side, f in zip(size, factors, strict=True))
        valid = smaller if smaller == larger else f"{smaller} or {larger}"
        same = len(set(factors)) == 1
        multiples = f"a multiple of {factors[0]}" if same else f"multiples of {format_size(factors)}"
        raise StudyError(
            f"network '{kind_of(self)}': a patch of {format_size(size)} voxels does not fit it; "
            f"with these settings its sides must be {multiples}, such as {valid}"
        )

    def check_min_side(self, size: tuple[int, ...] | None, min_side: int) -> None:
        """Check that pooling leaves something of an image of this size.

        Raises:
            StudyError: naming the smallest side.
        """
        if size is None:
            return
        self.check_dimensions(size)
        if min(size) < min_side:
            raise StudyError(
                f"network '{kind_of(self)}': an image of {format_size(size)} voxels is too small for it; "
                f"with these settings each side must be at least {min_side}; resize or pad the images, "
                f"or take another network"
            )

    def check_last_stride(self, size: tuple[int, ...] | None, shrinks_by: int) -> None:
        """Check that the last layer that halves the image has more than one voxel to halve.

        `shrinks_by` counts that layer in. Below it nothing fails: the layer sees a voxel and padding.

        Raises:
            StudyError: naming the smallest side.
        """
        if size is None:
            return
        self.check_dimensions(size)
        if max(size) <= shrinks_by // 2:
            raise StudyError(
                f"network '{kind_of(self)}': an image of {format_size(size)} voxels is one voxel before its "
                f"last stride, so that it would hardly see the image; with these settings a side must be at "
                f"least {shrinks_by // 2 + 1}; take a larger data.patch, or fewer strides (such as max_pool: "
                "false)"
            )

    def check_deepest_level(
        self, size: tuple[int, ...] | None, norm: Norm, shrinks_by: int | tuple[int, ...]
    ) -> None:
        """Check that an instance norm at the deepest level has more than one voxel for its variance.

        Raises:
            StudyError: if only one would be left; torch would fail at the first batch, without a remedy.
        """
        if size is None or norm != "instance":
            return
        if all(side <= factor for side, factor in zip(size, _per_axis(shrinks_by, size), strict=True)):
            raise StudyError(
                f"network '{kind_of(self)}': a patch of {format_size(size)} voxels shrinks to one voxel at "
                "the deepest level, where norm: instance has no variance to divide by; take a larger patch, "
                "fewer levels or norm: group"
            )

    def require_size(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the size of a network whose position embeddings are built for one size.

        Raises:
            StudyError: if there is none.
        """
        if size is None:
            raise StudyError(
                f"network '{kind_of(self)}' is built for one image size; set data.patch in the study"
            )
        return size

    def check_heads(self, hidden: int, heads: int) -> None:
        """Check that a hidden size is a multiple of the number of attention heads.

        Raises:
            StudyError: if it is not.
        """
        if hidden % heads:
            raise StudyError(
                f"network '{kind_of(self)}': hidden: {hidden} is not a multiple of heads: {heads}"
            )


def for_images_of(network: Network, spatial_dims: int) -> Network:
    """Return a network for images of this many axes.

    Raises:
        StudyError: if its own `spatial_dims` is another number.
    """
    own = getattr(network, "spatial_dims", spatial_dims)
    if own not in (None, spatial_dims):
        raise StudyError(
            f"network '{kind_of(network)}' has spatial_dims: {own}, and data.spatial_dims is {spatial_dims}; "
            "set both to the same number, or leave out the network's"
        )
    return msgspec.structs.replace(network, spatial_dims=spatial_dims) if own is None else network


def _per_axis(value: int | tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    return (value,) * len(size) if isinstance(value, int) else value


def format_size(size: Iterable[int]) -> str:
    """Return '96 x 96 x 64'."""
    return " x ".join(str(side) for side in size)


def monai_norm(norm: Norm, channels: tuple[int, ...]) -> tuple[str, dict[str, object]]:
    """Return MONAI's name and arguments of a norm with learnt scale and shift; its
    groups divide all channels.
    """
    if norm == "group":
        return ("GROUP", {"num_groups": gcd(GROUPS, *channels), "affine": True})
    return (norm.upper(), {"affine": True})


def build_of_monai(definition: Definition) -> nn.Module:
    """Return a network as MONAI builds it, without the norms that it holds and never uses.

    Raises:
        StudyError: if MONAI refuses the arguments.
    """
    return drop_unused_norms(build_plainly(definition))


def build_plainly(definition: Definition) -> nn.Module:
    """Return a network as MONAI builds it, with every tensor that MONAI's own checkpoints have.

    Raises:
        StudyError: if MONAI refuses the arguments.
    """
    import monai.networks.nets

    arguments = {key: _as_tuples(value) for key, value in definition.arguments.items()}
    try:
        network: nn.Module = getattr(monai.networks.nets, definition.name)(**arguments)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        raise StudyError(
            f"network: MONAI cannot build {definition.name} with these arguments: {type(error).__name__}: "
            f"{str(error)[:200]}"
        ) from None
    return network


def _as_tuples(value: Any) -> Any:
    """Return lists as tuples, which some of MONAI's norms and activations must be."""
    if isinstance(value, (list, tuple)):
        return tuple(_as_tuples(one) for one in value)
    return value


def replace_batch_norms(module: nn.Module, norm: Norm) -> nn.Module:
    """Replace every batch norm by another norm, and return the module.

    MONAI's ResNet applies its `norm` to the first layer only; its SENet and attention U-Net have no such
    argument. A study that asks for group norm because its hospitals differ, or for differential privacy, must
    not keep a batch norm by accident. So those networks are built with batch norm and changed here.
    """
    from torch import nn

    if norm == "batch":
        return module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                setattr(parent, name, _replacement(child, norm))
    return module


def _replacement(batch_norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, norm: Norm) -> nn.Module:
    from torch import nn

    channels, eps = batch_norm.num_features, batch_norm.eps
    if norm == "group":
        return nn.GroupNorm(gcd(GROUPS, channels), channels, eps=eps)
    is_2d, is_3d = isinstance(batch_norm, nn.BatchNorm2d), isinstance(batch_norm, nn.BatchNorm3d)
    instance_norm = nn.InstanceNorm3d if is_3d else nn.InstanceNorm2d if is_2d else nn.InstanceNorm1d
    return instance_norm(channels, eps=eps, affine=True)


def drop_unused_norms(vit: nn.Module) -> nn.Module:
    """Remove the norms that MONAI's transformer blocks hold for cross attention and never use.

    Parameters without a gradient stop DistributedDataParallel, and would be sent for nothing.
    """
    from torch import nn

    for module in list(vit.modules()):
        if getattr(module, "with_cross_attention", None) is False and hasattr(module, "norm_cross_attn"):
            module.norm_cross_attn = nn.Identity()
    return vit
