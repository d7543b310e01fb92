"""The vision architectures of the package transformers that a study may name, and their arguments.

It is an allow-list by model type, as a checkpoint's config.json says it (`"model_type": "vit"`): each
argument is named here with what values it may have. To add one, add an entry and a row in
tests/models/networks/test_hugging_face.py: every parameter must get a gradient, and the head must be its last
layer. Left out are types whose code needs other packages than transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medfed.models.networks._monai_catalogue import (
    COUNT,
    DEPTHS,
    MAX_BLOCKS,
    MAX_LEVELS,
    NUMBER,
    SWITCH,
    WHOLE,
    Check,
    Entry,
    one_of,
)

RATE: Check = (
    "a number from 0 to 0.9",
    lambda value: type(value) in (int, float) and 0 <= value <= 0.9,
)
BLOCKS: Check = (
    f"a whole number from 1 to {MAX_BLOCKS}",
    lambda value: type(value) is int and 1 <= value <= MAX_BLOCKS,
)
RATIO: Check = ("a number from 0.25 to 64", lambda value: NUMBER[1](value) and 0.25 <= value <= 64)
WIDTHS: Check = (
    "a list of whole numbers, one per stage",
    lambda value: (
        isinstance(value, (list, tuple)) and 0 < len(value) <= MAX_LEVELS and all(map(WHOLE[1], value))
    ),
)
WINDOWS: Check = (
    "a list of whole numbers, one per stage",
    lambda value: isinstance(value, (list, tuple)) and all(one == 0 or WHOLE[1](one) for one in value),
)
ACTIVATION: Check = one_of("gelu", "relu", "silu")


def _patch_side(default: int):  # type: ignore[no-untyped-def]
    return lambda arguments: int(arguments.get("patch_size", default))


def _stages_side(arguments: Mapping[str, Any]) -> int:
    """Return by what a side must be divisible so that no stage leaves out a row: 4 * 2 ** 3 = 32."""
    stages = len(arguments.get("depths", (1,) * STAGES))
    return int(arguments.get("patch_size", 4)) * int(2 ** (stages - 1))


def _windows_side(arguments: Mapping[str, Any]) -> int:
    """Return `_stages_side` times the window, which the last stage of Swin must fill: 32 * 7 = 224."""
    return _stages_side(arguments) * int(arguments.get("window_size", 7))


# How many stages an architecture has where the arguments do not say it.
STAGES = 4

_STAGED = {"embedding_size": WHOLE, "hidden_sizes": WIDTHS, "depths": DEPTHS, "hidden_act": ACTIVATION}
_CONVNEXT = {
    "patch_size": WHOLE,
    "hidden_sizes": WIDTHS,
    "depths": DEPTHS,
    "drop_path_rate": RATE,
    "hidden_act": ACTIVATION,
}
_TRANSFORMER = {
    "hidden_size": WHOLE,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": WHOLE,
    "hidden_act": ACTIVATION,
    "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE,
    "qkv_bias": SWITCH,
    "patch_size": WHOLE,
}
_DINO = {
    **_TRANSFORMER,
    "mlp_ratio": RATIO,
    "drop_path_rate": RATE,
    "use_swiglu_ffn": SWITCH,
    "image_size": WHOLE,
}
_SWIN = {
    "patch_size": WHOLE,
    "embed_dim": WHOLE,
    "depths": DEPTHS,
    "num_heads": WIDTHS,
    "window_size": WHOLE,
    "mlp_ratio": RATIO,
    "qkv_bias": SWITCH,
    "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE,
    "drop_path_rate": RATE,
    "hidden_act": ACTIVATION,
}


def _entry(arguments: dict[str, Check], head: str = "classifier", **sizes: Any) -> Entry:
    return Entry(arguments, f"model.{head}", inputs="num_channels", outputs="num_labels", **sizes)


ARCHITECTURES: dict[str, Entry] = {
    "convnext": _entry(_CONVNEXT, multiple=_stages_side),
    "convnextv2": _entry(_CONVNEXT, multiple=_stages_side),
    "dinov2": _entry(_DINO, multiple=_patch_side(14), sized="image_size"),
    "dinov2_with_registers": _entry(
        {**_DINO, "num_register_tokens": COUNT}, multiple=_patch_side(16), sized="image_size"
    ),
    "regnet": _entry(
        {**_STAGED, "groups_width": WHOLE, "layer_type": one_of("x", "y")}, "classifier.1", least_side=32
    ),
    "resnet": _entry(
        {
            **_STAGED,
            "layer_type": one_of("basic", "bottleneck"),
            "downsample_in_first_stage": SWITCH,
            "downsample_in_bottleneck": SWITCH,
        },
        "classifier.1",
        least_side=32,
    ),
    "swin": _entry(_SWIN, multiple=_windows_side, sized="image_size"),
    "swinv2": _entry(
        {**_SWIN, "pretrained_window_sizes": WINDOWS}, multiple=_stages_side, sized="image_size"
    ),
    "vit": _entry({**_TRANSFORMER, "intermediate_size": WHOLE}, multiple=_patch_side(16), sized="image_size"),
}
