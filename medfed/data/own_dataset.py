"""The cases of a study's own data module as index and dataset: tokens, splits and checks are medfed's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medfed.data.batch_needs import IMAGE_NEEDS, Needs
from medfed.data.case import Case
from medfed.data.datamodules import DataModule
from medfed.data.dataset import item_seed
from medfed.data.index import Index, check_cases, with_token
from medfed.data.splits import assign_splits, check_secret
from medfed.data.transforms import Prepared
from medfed.data.volume import Info, Volume
from medfed.errors import DataError, ImageError, place_in_plugin
from medfed.registry import kind_of

# What each task needs of an item, and as which type; the target of one class is a number.
_TENSORS: dict[str, dict[str, torch.dtype]] = {
    "segment": {"image": torch.float32, "label": torch.int64},
    "classify": {"image": torch.float32},
    "multilabel": {"image": torch.float32, "target": torch.float32},
    "image": {"image": torch.float32},
    "table": {"features": torch.float32},
    "survival": {"features": torch.float32, "target": torch.float32},
}


def index_own(place: str | Path, settings: DataModule, site_secret: bytes) -> Index:
    """Return the index of a hospital's data as a study's own data module lists them, checked.

    Raises:
        DataError: if it lists none, one twice, or a patient in two splits; or if its code fails.
    """
    check_secret(site_secret)
    kind = kind_of(settings)
    if not Path(place).exists():
        raise DataError("the site's data are not there; set `data` in the site file to their folder or file")
    try:
        listed = [with_token(case, site_secret) for case in settings.cases(Path(place))]
    except DataError:
        raise
    except Exception as error:
        where = place_in_plugin(error) or f"data.kind '{kind}'"
        raise DataError(f"listing the site's cases ended in {type(error).__name__} ({where})") from error
    if not listed:
        raise DataError(
            f"data.kind '{kind}' lists no case in the site's data; add cases, or correct its `cases`"
        )
    cases = assign_splits(listed, site_secret, settings.fractions, settings.fold)
    check_cases(cases)
    return Index(Path(place), f"data module '{kind}'", cases)


def check_serves(settings: DataModule, needs: Needs) -> None:
    """Raise if a data module does not give what a task needs.

    Raises:
        DataError: naming what it gives.
    """
    if needs not in settings.serves:
        raise DataError(
            f"the task needs '{needs}', and data.kind '{kind_of(settings)}' serves "
            f"{', '.join(settings.serves)}; take another task or data module"
        )


class OwnDataset(Dataset[dict[str, Any]]):
    """The cases of one split, as a study's own data module gives them; a seed and a number decide draws."""

    def __init__(
        self,
        cases: tuple[Case, ...],
        settings: DataModule,
        needs: Needs,
        *,
        training: bool,
        seed: int = 0,
        classes: int | None = None,
        answers: bool = True,
    ) -> None:
        self.cases, self.settings, self.needs = cases, settings, needs
        self.training, self.seed, self.classes = training, seed, classes
        # Whether items must hold what is learned: to predict, nobody needs a label.
        self.answers = answers

    def set_random_state(self, seed: int) -> None:
        """Derive all following items from this seed."""
        self.seed = int(seed)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, number: int) -> dict[str, Any]:
        item = self.whole(self.cases[number], number if self.training else None)
        item.pop("affine_ras", None)
        return item

    def whole(self, case: Case, number: int | None = None) -> dict[str, Any]:
        """Return a case's item, with its affine; with a number, the training item of this number.

        Raises:
            ImageError: naming the case by token: it cannot be read, or is not what the task needs.
        """
        random = None if number is None else np.random.default_rng(item_seed(self.seed, number))
        try:
            item = dict(self.settings.item(case, self.needs, random))
            self._check(item)
        except DataError as error:
            named = str(error) if case.token in str(error) else f"case {case.token}: {error}"
            raise (type(error) if isinstance(error, ImageError) else ImageError)(named) from error
        except Exception as error:
            where = place_in_plugin(error) or f"data.kind '{kind_of(self.settings)}'"
            raise ImageError(
                f"case {case.token}: reading it ended in {type(error).__name__} ({where})"
            ) from error
        return {**item, "case": case.token}

    def content(self, case: Case) -> Any:
        """Return the numbers by which equal cases are found: a case's image, or its features."""
        item = self.whole(case)
        return item["image" if "image" in item else "features"].numpy()

    def _check(self, item: dict[str, Any]) -> None:
        """Check an item against what the task needs, and make a class's number a tensor."""
        kind = kind_of(self.settings)
        if not self.answers:
            for name in ("label", "target"):
                item.pop(name, None)
        elif self.needs in ("classify", "table"):
            target = item.get("target")
            if (
                target is None
                or int(target) < 0
                or (self.classes is not None and int(target) >= self.classes)
            ):
                raise ImageError(
                    f"data.kind '{kind}' gives no target of the task's {self.classes or ''} classes"
                )
            item["target"] = torch.tensor(int(target), dtype=torch.int64)
        for name, dtype in _TENSORS[self.needs].items():
            if name not in item and name in ("label", "target") and not self.answers:
                continue
            value = item.get(name)
            if not isinstance(value, torch.Tensor) or value.dtype != dtype:
                found = f"{value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
                raise ImageError(
                    f"data.kind '{kind}' gives '{name}' as {found}, expected a tensor of {dtype}"
                )
            if name != "target" and not torch.isfinite(value).all():
                raise ImageError(f"data.kind '{kind}' gives '{name}' with numbers that are not finite")
        if self.needs == "segment" and self.answers:
            self._check_label(item["image"], item["label"], kind)

    def _check_label(self, image: torch.Tensor, label: torch.Tensor, kind: str) -> None:
        if image.ndim != 4 or label.shape != (1, *image.shape[1:]):
            raise ImageError(
                f"data.kind '{kind}' gives an image of shape {tuple(image.shape)} with a label of "
                f"{tuple(label.shape)}, expected (C, X, Y, Z) and (1, X, Y, Z)"
            )
        if self.classes is not None and (int(label.min()) < 0 or int(label.max()) >= self.classes):
            raise ImageError(
                f"data.kind '{kind}' gives a label with numbers that are none of the task's classes"
            )


def volumes_of(item: dict[str, Any]) -> tuple[Volume, Volume | None]:
    """Return an item's image and label as volumes; without an affine their voxels count pixels."""
    affine = item.get("affine_ras")
    affine_ras = np.eye(4) if affine is None else np.asarray(affine, np.float64)
    info = Info(flags=("pixels",) if affine is None else ())
    label = item.get("label")
    return (
        Volume(_volume(item["image"].numpy()), affine_ras, info),
        None if label is None else Volume(label.numpy(), affine_ras, info),
    )


def _volume(array: Any) -> Any:
    return array[..., None] if array.ndim == 3 else array


def prepared_of(item: dict[str, Any]) -> Prepared:
    """Return an item as a prepared case, whose grid is its files' own."""
    image, label = volumes_of(item)
    return Prepared(
        image=image.array,
        label=None if label is None else label.array,
        centres=np.zeros((0, 3), np.int32),
        affine_ras=image.affine_ras,
        original_shape=image.shape,
        original_affine_ras=image.affine_ras,
        in_pixels="pixels" in image.info.flags,
    )


def unmeasured_note(needs: Needs) -> tuple[str, ...]:
    """Return what evaluation leaves out for own data."""
    if needs not in IMAGE_NEEDS:
        return ()
    return ("the data are the study's own data module: no perturbed images are measured",)
