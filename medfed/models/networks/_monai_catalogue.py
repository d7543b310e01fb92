"""The networks of MONAI that a study or bundle may name with MONAI's own arguments, and these arguments.

It is an allow-list: a class is named here exactly, with each argument that it takes and what values that may
have. To add a network, add an entry; it must return one tensor of logits, (B, K, X, Y, Z) or (B, K), and hold
each tensor under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from math import prod
from typing import Any, NamedTuple

from medfed.errors import StudyError

# The largest width or depth of a layer, and the most entries of a list, that an argument may give.
MAX_NUMBER = 8192
MAX_ENTRIES = 64
# The most levels of a network and blocks of a level: what nobody approved yet must not build for hours.
MAX_LEVELS, MAX_BLOCKS = 16, 128

# What an argument may be: a word in messages, and whether a value is it.
Check = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def _is_whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value <= MAX_NUMBER


def _is_list(value: Any, least: int = 1) -> bool:
    """Whether a value is a list of whole numbers, or of such lists (one number per axis)."""
    return (
        isinstance(value, (list, tuple))
        and 0 < len(value) <= MAX_ENTRIES
        and all(
            _is_whole(one, least)
            or (isinstance(one, (list, tuple)) and 0 < len(one) <= 3 and all(map(_is_whole, one)))
            for one in value
        )
    )


def _is_layer(value: Any) -> bool:
    """Whether a value names a norm or activation, alone or with literal arguments."""
    if isinstance(value, str):
        return value.replace("_", "").isalnum()
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and isinstance(value[0], str)
        and _is_layer(value[0])
        and isinstance(value[1], Mapping)
        and all(
            isinstance(key, str) and key.isidentifier() and (type(one) is bool or _is_number(one))
            for key, one in value[1].items()
        )
    )


def _is_depth(value: Any) -> bool:
    """Whether a value is how many blocks a network has at each of a few levels."""
    return (
        _is_list(value)
        and len(value) <= MAX_LEVELS
        and all(type(one) is int for one in value)
        and (max(value) <= MAX_BLOCKS)
    )


WHOLE: Check = (f"a whole number from 1 to {MAX_NUMBER}", _is_whole)
COUNT: Check = (
    f"a whole number from 0 to {MAX_BLOCKS}",
    lambda value: _is_whole(value, 0) and value <= MAX_BLOCKS,
)
LIST: Check = ("a list of whole numbers", _is_list)
DEPTHS: Check = (f"a list of whole numbers up to {MAX_BLOCKS}", _is_depth)
SIDES: Check = ("a whole number or a list of them", lambda value: _is_whole(value) or _is_list(value))
SHARE: Check = (
    "a number from 0 to 1",
    lambda value: value is None or (_is_number(value) and 0 <= value <= 1),
)
NUMBER: Check = ("a number", _is_number)
SWITCH: Check = ("true or false", lambda value: type(value) is bool)
LAYER: Check = ("a name, or [name, {argument: number}]", _is_layer)
OFF: Check = ("false: no weights are downloaded, give a file by `start`", lambda value: value is False)


def one_of(*words: str) -> Check:
    return " or ".join(words), lambda value: isinstance(value, str) and value in words


class Entry(NamedTuple):
    """A network of MONAI that may be named.

    arguments: what it takes besides channels, axes and size, which the study says.  ignored: what bundles of
    older versions of MONAI say besides, and which changes nothing.  inputs, outputs: what it calls its
    numbers of channels.  head: the path of its last layer.  multiple: by what each side of an image must be
    divisible.  least_side: the smallest side.  sized: what it calls the image size that it is built for.
    """

    arguments: dict[str, Check]
    head: str
    multiple: Callable[[Mapping[str, Any]], int | tuple[int, ...]] = lambda arguments: 1
    inputs: str = "in_channels"
    outputs: str = "out_channels"
    ignored: tuple[str, ...] = ()
    least_side: int = 1
    sized: str = ""


def _halvings(arguments: Mapping[str, Any]) -> int | tuple[int, ...]:
    """Return how far the strides of a U-Net shrink an image, per axis if they differ."""
    strides = arguments.get("strides", [])
    if all(type(one) is int for one in strides):
        return int(prod(strides))
    sides = max(len(one) for one in strides if not isinstance(one, int))
    each = [(one,) * sides if isinstance(one, int) else tuple(one) for one in strides]
    if any(len(one) != sides for one in each):
        raise StudyError("network: strides: each entry is one number, or one per axis")
    return tuple(prod(axis) for axis in zip(*each, strict=True))


_UNET = {"channels": LIST, "strides": LIST, "kernel_size": SIDES, "up_kernel_size": SIDES, "dropout": SHARE}

SEGMENTERS: dict[str, Entry] = {
    "AttentionUnet": Entry(_UNET, "model.2", _halvings),
    "BasicUNet": Entry(
        {
            "features": LIST,
            "act": LAYER,
            "norm": LAYER,
            "bias": SWITCH,
            "dropout": SHARE,
            "upsample": one_of("deconv", "nontrainable", "pixelshuffle"),
        },
        "final_conv",
        lambda arguments: 16,
    ),
    "SegResNet": Entry(
        {
            "init_filters": WHOLE,
            "dropout_prob": SHARE,
            "act": LAYER,
            "norm": LAYER,
            "num_groups": WHOLE,
            "blocks_down": DEPTHS,
            "blocks_up": DEPTHS,
            "upsample_mode": one_of("deconv", "nontrainable", "pixelshuffle"),
        },
        "conv_final",
        lambda arguments: 2 ** (len(arguments.get("blocks_down", (1, 2, 2, 4))) - 1),
    ),
    "SwinUNETR": Entry(
        {
            "patch_size": WHOLE,
            "depths": DEPTHS,
            "num_heads": LIST,
            "window_size": SIDES,
            "qkv_bias": SWITCH,
            "mlp_ratio": NUMBER,
            "feature_size": WHOLE,
            "norm_name": LAYER,
            "drop_rate": SHARE,
            "attn_drop_rate": SHARE,
            "dropout_path_rate": SHARE,
            "normalize": SWITCH,
            "patch_norm": SWITCH,
            "use_checkpoint": SWITCH,
            "downsample": one_of("merging", "mergingv2"),
            "use_v2": SWITCH,
        },
        "out",
        lambda arguments: int(arguments.get("patch_size", 2)) ** 5,
        ignored=("img_size",),
    ),
    "UNETR": Entry(
        {
            "feature_size": WHOLE,
            "hidden_size": WHOLE,
            "mlp_dim": WHOLE,
            "num_heads": WHOLE,
            "proj_type": one_of("conv", "perceptron"),
            "norm_name": LAYER,
            "conv_block": SWITCH,
            "res_block": SWITCH,
            "dropout_rate": SHARE,
            "qkv_bias": SWITCH,
        },
        "out",
        lambda arguments: 16,
        sized="img_size",
    ),
    "UNet": Entry(
        {
            **_UNET,
            "num_res_units": COUNT,
            "act": LAYER,
            "norm": LAYER,
            "bias": SWITCH,
            "adn_ordering": one_of("NDA", "NAD", "DNA", "DAN", "AND", "ADN", "NA", "A"),
        },
        "model.2",
        _halvings,
    ),
}

_DENSE = {
    "init_features": WHOLE,
    "growth_rate": WHOLE,
    "block_config": DEPTHS,
    "bn_size": WHOLE,
    "act": LAYER,
    "norm": LAYER,
    "dropout_prob": SHARE,
    "pretrained": OFF,
}
_RESNET = {
    "conv1_t_size": SIDES,
    "conv1_t_stride": SIDES,
    "no_max_pool": SWITCH,
    "shortcut_type": one_of("A", "B"),
    "widen_factor": NUMBER,
    "bias_downsample": SWITCH,
    "pretrained": OFF,
}
_RESIDUAL = Entry(_RESNET, "fc", inputs="n_input_channels", outputs="num_classes", least_side=32)

CLASSIFIERS: dict[str, Entry] = {
    **{
        f"DenseNet{layers}": Entry(_DENSE, "class_layers.out", least_side=32)
        for layers in (121, 169, 201, 264)
    },
    "EfficientNetBN": Entry(
        {
            "model_name": one_of(*(f"efficientnet-b{number}" for number in range(9))),
            "norm": LAYER,
            "adv_prop": SWITCH,
            "pretrained": OFF,
        },
        "_fc",
        outputs="num_classes",
        least_side=32,
    ),
    **{f"resnet{layers}": _RESIDUAL for layers in (10, 18, 34, 50)},
}

# What the study says, and a bundle's own values for which are left out.
_FROM_STUDY = ("spatial_dims", "in_channels", "out_channels", "n_input_channels", "num_classes")


def entry_of(catalogue: Mapping[str, Entry], name: str, what: str = "a network of MONAI") -> Entry:
    """Return the entry of a network's name; `what` says in messages what the catalogue lists.

    Raises:
        StudyError: if it is none of the allow-list, with the nearest names.
    """
    if name not in catalogue:
        near = get_close_matches(name, catalogue, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise StudyError(
            f"network.name: {name[:80]!r} is not {what} that a study may name here; {meant}"
            f"there are {', '.join(sorted(catalogue))}"
        )
    return catalogue[name]


def check_arguments(name: str, entry: Entry, arguments: Mapping[str, Any]) -> None:
    """Check that each argument is one of the network's, with a value that it may have.

    Raises:
        StudyError: naming the argument, what was found and what it may be.
    """
    for key, value in arguments.items():
        if key not in entry.arguments:
            raise StudyError(
                f"network.arguments: {str(key)[:80]!r} is no argument of {name} that may be given; there are "
                f"{', '.join(sorted(entry.arguments))} (the study's data and task say its channels and axes)"
            )
        word, is_valid = entry.arguments[key]
        if not is_valid(value):
            raise StudyError(f"network.arguments: {key} of {name} must be {word}; found {str(value)[:80]!r}")


def as_arguments(name: str, entry: Entry, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a bundle's definition without those that the study says itself, checked.

    Raises:
        StudyError: as `check_arguments`.
    """
    skipped = {*_FROM_STUDY, *entry.ignored, entry.sized}
    arguments = {key: value for key, value in found.items() if key not in skipped}
    check_arguments(name, entry, arguments)
    return arguments


def axes_of(found: Mapping[str, Any]) -> int | None:
    """Return the number of axes that a definition states, None if it states none."""
    axes = found.get("spatial_dims")
    return axes if axes in (2, 3) and type(axes) is int else None
