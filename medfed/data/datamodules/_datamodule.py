"""The contract of a data module: a record that lists a hospital's cases and gives the tensors of one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from medfed.data.batch_needs import Needs
from medfed.data.splits import DEFAULT_FRACTIONS, Fold, check_fractions
from medfed.registry import Kind

if TYPE_CHECKING:
    import numpy as np

    from medfed.data.case import Case
    from medfed.data.layouts._layout import ListedCase

Fraction = Annotated[float, Meta(ge=0, le=1)]


class DataModule(Kind, frozen=True):
    """A study's own reading of a hospital's data.

    workers: the processes that prepare batches, 0 for none.  fractions: the share of patients in train, val
    and test, for cases that no split is given of.  fold: one fold of a cross-validation, as of images.
    """

    folder: ClassVar[str] = "datamodules"

    # What it gives: the needs of the tasks that can learn from it.
    serves: ClassVar[tuple[Needs, ...]] = ()

    workers: Annotated[int, Meta(ge=0)] = 0
    fractions: tuple[Fraction, Fraction, Fraction] = DEFAULT_FRACTIONS
    fold: Fold | None = None

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    @property
    def inputs(self) -> int:
        """How many channels (of images) or features (of rows) the network sees."""
        raise NotImplementedError

    def cases(self, place: Path) -> Iterable[ListedCase]:
        """Yield the cases in a hospital's folder or file, each with the hospital's own id and patient.

        The patient keeps the splits apart: all of a patient's cases are in one. `image` names the files.
        """
        raise NotImplementedError

    def item(self, case: Case, needs: Needs, random: np.random.Generator | None) -> dict[str, Any]:
        """Return one case's tensors, as a batch of `needs` holds them (see `medfed.models.tasks`).

        For training `random` draws the augmentation; without it the whole case is returned, as it is
        measured. For `segment` the images are (C, X, Y, Z), and `affine_ras` (4, 4) may say where their
        voxels are in mm.
        """
        raise NotImplementedError
