"""Options of the readers, as `medfed.read` and `medfed.read_label` take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medfed.data.class_names import Classes, ClassNames, Structure, count_of
from medfed.data.size_limits import MAX_VOLUME_BYTES

Padding = Literal["air", "nan"]
Tilt = Literal["affine", "resample", "refuse"]
Uneven = Literal["refuse", "resample"]
Pet = Literal["stored", "suv"]
Overlap = Literal["channels", "refuse", "later"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read images where several results are correct; see `medfed.read`."""

    padding: Padding = "air"
    tilt: Tilt = "affine"
    uneven: Uneven = "refuse"
    pet: Pet = "stored"
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
    # Move a label that is on another grid onto the image's, by its nearest voxels.
    resample: bool = False
    # A study's classes by name; they decide wherever something names a structure, else numbers do.
    naming: ClassNames | None = None

    @classmethod
    def of(
        cls,
        classes: Classes,
        names: Mapping[str, int] | None = None,
        overlap: Overlap = "channels",
        resample: bool = False,
    ) -> LabelOptions:
        """Return the options for a task's classes: their names, or only how many there are."""
        naming = classes if isinstance(classes, ClassNames) else None
        return cls(count_of(classes), names, overlap, resample, naming)

    def classes_of(self, structures: Sequence[Structure]) -> dict[int, int | None]:
        """Return the class of each structure of a file by its number, None for one that is left out.

        A file in which no structure has a name or a code is read by its numbers.

        Raises:
            LabelClassesError: if a structure's name and code mean different classes.
        """
        if self.naming is not None and any(one.name or one.meaning for one in structures):
            return {one.number: self.naming.class_of(one) for one in structures}
        if self.naming is not None and self.naming.meanings:
            return {one.number: self.naming.class_of_number(one.number) for one in structures}
        if self.names is not None:
            return {one.number: self.names.get(one.name) for one in structures}
        return {one.number: one.number for one in structures}
