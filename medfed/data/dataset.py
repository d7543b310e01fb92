"""One split of a site's cases as a torch dataset; a seed and an item's number decide each random patch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medfed.data import case_reading, transforms
from medfed.data.batch_needs import PATCH_NEEDS, Needs
from medfed.data.cache import NoCache, open_cache
from medfed.data.case import Case
from medfed.data.class_names import Classes
from medfed.data.findings import Findings
from medfed.data.screening import unreadable_files
from medfed.data.settings import Images
from medfed.data.transforms import Prepared
from medfed.errors import ImageError


@dataclass(frozen=True, eq=False, repr=False)
class CaseValues:
    """What a site's tables say of its cases, by token: findings, and inputs (F,) float32 beside the image."""

    findings: Mapping[str, Findings] = field(default_factory=dict)
    tabular: Mapping[str, torch.Tensor] | None = None


class ImageDataset(Dataset[dict[str, Any]]):
    """The cases of one split as dictionaries.

    For training, item i is patch i % samples of case i // samples. It follows from (seed, i) alone: neither
    the number of workers nor the order of access changes it. For evaluation, item i is the whole case i.

    Keys: `image` (C, X, Y, Z) float32; `label` (1, X, Y, Z) int64 for segmentation, or `target`: an int64
    number for classification, or for several findings (K,) float32 of 1, 0, or NaN (not labelled); `tabular`,
    (F,) float32 of the table beside the images, if the study asks for one; `case`, the case's token. In 2D
    (`data.spatial_dims: 2`) training items and images to classify are (C, X, Y), their labels (1, X, Y); for
    evaluation a segmentation keeps Z.
    """

    def __init__(
        self,
        cases: tuple[Case, ...],
        settings: Images,
        needs: Needs,
        *,
        training: bool,
        seed: int = 0,
        classes: Classes = None,
        cache: NoCache | None = None,
        values: CaseValues | None = None,
    ) -> None:
        self.cases = cases
        self.settings = settings
        self.needs = needs
        self.training = training
        self.classes = classes
        self.seed = seed
        self.values = values or CaseValues()
        self.cache = cache if cache is not None else open_cache(settings)
        labelled = needs == "segment"
        letters = settings.image_letters
        self._augment = transforms.augmentation(settings.augment, labelled, letters) if training else None
        self._samples = settings.samples if training and needs in PATCH_NEEDS else 1

    def set_random_state(self, seed: int) -> None:
        """Derive all following items from this seed; call it before the epoch's iterator is made."""
        self.seed = int(seed)

    def __len__(self) -> int:
        return len(self.cases) * self._samples

    def __getitem__(self, item: int) -> dict[str, Any]:
        case = self.cases[item // self._samples]
        prepared = self.prepared(case)
        if self.training:
            seed = item_seed(self.seed, item)
            image = prepared.image
            patch = transforms.sample_patch(
                transforms.random_patch(image, self.settings, seed) if self.needs == "image" else image,
                prepared.label,
                prepared.centres,
                self.settings,
                self._augment,
                seed,
                owned=not self.cache.keeps,
            )
            result: dict[str, Any] = {**patch}
        else:
            result = self._whole(prepared)
        if self.needs == "classify":
            result["target"] = torch.tensor(case.target, dtype=torch.int64)
        if self.needs == "multilabel":
            result["target"] = torch.tensor(self.values.findings[case.token], dtype=torch.float32)
        if self.values.tabular is not None:
            result["tabular"] = self.values.tabular[case.token].clone()
        result["case"] = case.token
        return result

    def _whole(self, prepared: Prepared) -> dict[str, Any]:
        # A copy, so that changing a batch does not change the cache.
        image = np.array(prepared.image, np.float32)
        if self.needs == "segment":
            assert prepared.label is not None
            return {"image": torch.from_numpy(image), "label": torch.tensor(prepared.label.astype(np.int64))}
        if self.needs == "image":
            return {"image": torch.from_numpy(image)}
        return {"image": torch.tensor(transforms.whole_input(image, self.settings))}

    def prepared(self, case: Case) -> Prepared:
        """Return a prepared case, from the cache if it is there; its arrays may be mapped and float16.

        Raises:
            ImageError, LabelError: naming the case by token.
        """
        used = used_part(case, self.needs)
        if used.fault is not None or () in used.image:
            with case_reading.naming(case):
                case_reading.check_files(used)
        try:
            return self.cache.get(used, lambda: prepare_case(used, self.settings, self.needs, self.classes))
        except (OSError, ImageError) as error:
            failure = error
        # A cache on disk digests the files first, and does not say which is missing.
        with case_reading.naming(case):
            case_reading.check_files(used)
        raise failure if isinstance(failure, ImageError) else unreadable_files(failure, case) from None


def used_part(case: Case, needs: Needs) -> Case:
    """Return a case with its label only if the task needs one."""
    if needs == "segment":
        return case
    fault = None if case.fault is not None and case.fault.of_label else case.fault
    return replace(case, label=None, masks=(), fault=fault)


def prepare_case(case: Case, settings: Images, needs: Needs, classes: Classes) -> Prepared:
    """Return a case, read and prepared; its label only if the task needs one."""
    image, label = case_reading.read_case(used_part(case, needs), settings, classes)
    with case_reading.naming(case):
        prepared = transforms.prepare(image, label, settings)
        return replace(prepared, moved=case_reading.moved_parts(image, label))


def item_seed(seed: int, item: int) -> int:
    """Return the seed of one item; neighbouring seeds and items give unrelated streams."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{item}".encode()).digest()[:8], "big")
