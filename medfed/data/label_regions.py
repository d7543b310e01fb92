"""Labels from regions of voxels, each with its class, and the checks that all label formats share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.class_names import BACKGROUND
from medfed.data.identity_digest import identities_differ
from medfed.data.read_options import Overlap
from medfed.data.refusals import LabelClassesError, OtherPatientError
from medfed.data.volume import Info, Volume
from medfed.errors import LabelError

# Voxels of each class as flat indices into (X, Y, Z).
Regions = Mapping[int, Sequence[NDArray[np.int64]]]
# More classes than any label has: a larger value is damage.
MAX_CLASS = 1 << 24


def paint_regions(
    regions: Regions, like: Volume, overlap: Overlap, skipped: Sequence[str], flags: tuple[str, ...] = ()
) -> Volume:
    """Return the label of some regions; `overlap` decides about classes that share voxels.

    Raises:
        LabelError: if they share voxels and overlap is 'refuse'.
    """
    dtype = class_dtype(max(regions, default=0))
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
                f"{shared} voxels belong to several segments; set data.read.overlap to 'later' in the"
                " study (and not to 'refuse' in the site file), which gives them to the class with the"
                " higher number (medfed.read_label: overlap='later' or 'channels')"
            )
        if overlap == "channels":
            channels = np.zeros((len(regions), *like.shape), dtype)
            for channel, number in zip(channels, sorted(regions), strict=True):
                for voxels in regions[number]:
                    channel.reshape(-1)[voxels] = number
    return Volume(channels, like.affine_ras.copy(), Info("", tuple(skipped), flags))


def class_dtype(highest: int) -> type[np.integer[Any]]:
    """Return the smallest integer type supported by torch that holds classes up to `highest`."""
    return np.uint8 if highest < 256 else np.int16 if highest < 1 << 15 else np.int32


def check_same_patient(like: Volume, identities: Sequence[str]) -> tuple[str, ...]:
    """Refuse a label of another patient or image; return a flag if the match is uncertain.

    A different frame of reference alone is no reason to refuse: rt-utils invents one for each structure set.

    Raises:
        LabelError: if it is another patient's, or neither its frame of reference nor its series is the
            volume's.
    """
    if identities_differ(like.info.identities, identities, "patient"):
        raise OtherPatientError(
            "the label is of another patient than the image; take the label of this image"
        )
    if not identities_differ(like.info.identities, identities, "frame"):
        return ()
    if identities_differ(like.info.identities, identities, "series"):
        raise LabelError(
            "the label was drawn on another image: neither its frame of reference nor its series is this"
            " image's; take the label of this image"
        )
    return ("other_frame_of_reference",)


def check_classes(values: list[int], classes: int | None) -> None:
    """Refuse values that are not classes of the task.

    Raises:
        LabelError: naming them.
    """
    wrong = [value for value in values if not 0 <= value < (MAX_CLASS if classes is None else classes)]
    if wrong:
        named = ", ".join(map(str, wrong[:5])) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        if classes is None:
            raise LabelClassesError(f"the label holds the values {named}; classes start at 0. Correct it")
        raise LabelClassesError(
            f"the label holds the values {named}; the task has classes 0 to {classes - 1}. Say in the site "
            f"file what each value means, such as classes: {{1: liver, {max(wrong)}: {BACKGROUND}}}, or name "
            "the missing classes in task.classes"
        )
