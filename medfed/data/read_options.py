"""Options of the readers, as `medfed.read` and `medfed.read_label` take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medfed.data.size_limits import MAX_VOLUME_BYTES

Padding = Literal["air", "nan"]
Tilt = Literal["affine", "resample", "refuse"]
Uneven = Literal["refuse", "resample"]
Overlap = Literal["channels", "refuse", "later"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read images where several results are correct; see `medfed.read`."""

    padding: Padding = "air"
    tilt: Tilt = "affine"
    uneven: Uneven = "refuse"
    max_bytes: int = MAX_VOLUME_BYTES
    # Read numbers that stand for classes: those of a palette, of colours, of a seg.nrrd's segments.
    as_label: bool = False
    # A compressed file of at most this many voxels may expand by any ratio: a label of a volume that
    # is already in memory.
    unlimited_ratio_voxels: int = 0


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How to turn segments or label values into classes; see `medfed.read_label`."""

    classes: int | None = None
    names: Mapping[str, int] | None = None
    overlap: Overlap = "channels"

    def segment_class(self, number: int, title: bytes) -> int | None:
        """Return the class of a segment, or None if `names` does not contain its label."""
        return number if self.names is None else self.names.get(title.decode("utf-8", "replace"))
