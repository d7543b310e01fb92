"""Arrays of numpy, prepared by somebody else's pipeline, listed in cases.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from medfed.data.batch_needs import Needs
from medfed.data.datamodules._datamodule import DataModule
from medfed.errors import DataError, ImageError

if TYPE_CHECKING:
    import numpy as np

    from medfed.data.case import Case
    from medfed.data.layouts._layout import ListedCase

COLUMNS = ("case", "patient", "image")


class Arrays(DataModule, tag="arrays", frozen=True):
    """Prepared images as .npy files, listed in cases.csv (case, patient, image, ...).

    channels: the channels of every image.  spatial_dims: 3 for images (C, X, Y, Z); 2 for (C, X, Y), which
    can only be classified.

    Further columns: `label`, a .npy of class numbers (1, X, Y, Z); `target`, the class's number; `split`.
    """

    serves: ClassVar[tuple[Needs, ...]] = ("segment", "classify")

    channels: Annotated[int, Meta(ge=1)] = 1
    spatial_dims: Annotated[int, Meta(ge=2, le=3)] = 3

    @property
    def inputs(self) -> int:
        return self.channels

    def cases(self, place: Path) -> Iterator[ListedCase]:
        from medfed.data.layouts._layout import ListedCase
        from medfed.data.splits import UNASSIGNED

        try:
            with (place / "cases.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error):
            raise DataError("the site's data folder has no cases.csv that can be read; write one") from None
        for number, row in enumerate(rows, 2):
            if missing := [name for name in COLUMNS if not row.get(name)]:
                raise DataError(f"cases.csv, line {number}: '{missing[0]}' is empty or no column; fill it in")
            label, target = row.get("label"), row.get("target")
            yield ListedCase(
                row["case"],
                row["patient"],
                (place / row["image"],),
                label=place / label if label else None,
                target=_number(target, number) if target else None,
                split=row.get("split") or UNASSIGNED,
            )

    def item(self, case: Case, needs: Needs, random: np.random.Generator | None) -> dict[str, Any]:
        import numpy as np
        import torch

        (path,) = case.image
        image = _array(Path(str(path)))
        if image.ndim != 1 + self.spatial_dims or len(image) != self.channels:
            raise ImageError(
                f"the array has shape {image.shape}, expected {self.channels} channels before "
                f"{self.spatial_dims} axes (data.channels, data.spatial_dims)"
            )
        item: dict[str, Any] = {"image": torch.from_numpy(np.array(image, np.float32))}
        if needs == "segment" and case.label is not None:
            item["label"] = torch.from_numpy(np.array(_array(case.label), np.int64))
        if needs == "classify":
            item["target"] = case.target
        return item


def _number(target: str, line: int) -> int:
    if not target.isdecimal():
        raise DataError(f"cases.csv, line {line}: target is not the number of a class; write 0, 1, ...")
    return int(target)


def _array(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(
            f"an array of the case cannot be read: {type(error).__name__}; write it again"
        ) from None
