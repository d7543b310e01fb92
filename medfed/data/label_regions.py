"""Regions of a volume's voxels, each with its class, made one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medfed.data.identity_digest import disagree
from medfed.data.volume import Info, Volume
from medfed.errors import LabelError

# Voxels of each class as flat indices into (X, Y, Z).
Regions = Mapping[int, Sequence[NDArray[np.int64]]]


def label_of(
    regions: Regions, like: Volume, overlap: str, skipped: Sequence[str], flags: tuple[str, ...] = ()
) -> Volume:
    """Return the label; classes that share voxels are treated as `overlap` says.

    Raises:
        LabelError: if they share voxels and overlap is 'refuse'.
    """
    highest = max(regions, default=0)
    dtype = np.uint8 if highest < 256 else np.int16 if highest < 1 << 15 else np.int32
    flat = np.zeros(int(np.prod(like.shape)), dtype)
    shared = 0
    for number in sorted(regions):
        for voxels in regions[number]:
            shared += int(np.count_nonzero((flat[voxels] != 0) & (flat[voxels] != number)))
            flat[voxels] = number
    channels = flat.reshape(1, *like.shape)
    if shared:
        flags = (*flags, "overlap")
        if overlap == "refuse":
            raise LabelError(
                f"{shared} voxels belong to several segments; read it with overlap='channels' or"
                " overlap='later'"
            )
        if overlap == "channels":
            channels = np.zeros((len(regions), *like.shape), dtype)
            for channel, number in zip(channels, sorted(regions), strict=True):
                for voxels in regions[number]:
                    channel.reshape(-1)[voxels] = number
    return Volume(channels, like.affine_ras.copy(), Info("", tuple(skipped), flags))


def check_belonging(like: Volume, signs: Sequence[str]) -> tuple[str, ...]:
    """Refuse a label that says it is of another patient or image; return a flag where it is not sure.

    A frame of reference alone does not decide: rt-utils invents one for each structure set.

    Raises:
        LabelError: if it is another patient's, or neither its frame of reference nor its series is the volume's.
    """
    if disagree(like.info.marks, signs, "patient"):
        raise LabelError("the label is of another patient than the image; take the label of this image")
    if not disagree(like.info.marks, signs, "frame"):
        return ()
    if disagree(like.info.marks, signs, "series"):
        raise LabelError(
            "the label was drawn on another image: neither its frame of reference nor its series is this image's;"
            " take the label of this image"
        )
    return ("other_frame_of_reference",)


def class_of(number: int, title: bytes, names: Mapping[str, int] | None) -> int | None:
    """Return the class of a segment, None where `names` does not name it."""
    return number if names is None else names.get(title.decode("utf-8", "replace"))
