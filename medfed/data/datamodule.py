"""One site's cases as Lightning wants them: batches to train on, to validate on and to test on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from medfed.data.cache import NoCache, in_memory, open_cache
from medfed.data.cache_location import CacheLocation
from medfed.data.case import Case
from medfed.data.dataset import ImageDataset
from medfed.data.index import Index, index_folder
from medfed.data.samplers import FixedStepBatchSampler
from medfed.data.settings import AnyData, Images, Table
from medfed.data.table import TableDataset, TableRows, fit_scaling, network_inputs, read_table
from medfed.data.transforms import Needs, Prepared, read_case, restore
from medfed.data.volume import Volume
from medfed.errors import DataError


class SiteDataModule(pl.LightningDataModule):
    """A site's training, validation and test batches.

    A batch is a dictionary: `image` (B, C, X, Y, Z) float32 with `label` (B, 1, X, Y, Z) int64 (segmentation)
    or `target` (B,) int64 (classification); or `features` (B, F) float32 with `target` (B,) int64 or (B, 2)
    float32 of time and event (survival); and `case`, a list of tokens. Segmentation trains on patches; it
    validates and tests on whole volumes, one at a time, as they differ in size.

    It saves nothing: Lightning finds no hyperparameters and no state here, so a checkpoint can hold no path
    and no name.

    Args:
        source: the site's index (or its rows, for a table); `SiteDataModule.open` makes it from a folder.
        settings: the study's `data` section.
        needs: what the task needs in a batch.
        batch: training items a step: patches for segmentation, else cases.
        seed: from which augmentation and the order of training items follow until `set_random_state` and
        torch's own
            seed say otherwise.
        classes: how many classes the task has, the background included; labels and targets are checked
        against it.
        cache: where `cache: disk` keeps prepared volumes, and what is to be said about it.
        steps: how many training batches an epoch has; one pass over the cases if None.
    """

    def __init__(
        self,
        source: Index | TableRows,
        settings: AnyData,
        needs: Needs,
        *,
        batch: int = 1,
        seed: int = 0,
        classes: int | None = None,
        cache: CacheLocation | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.settings = settings
        self.needs = needs
        self.batch = batch
        self.seed = seed
        self.classes = classes
        self.notes: tuple[str, ...] = ()
        self._rows: TableRows | None = None
        self._store: NoCache | None = None
        if isinstance(settings, Table):
            if not isinstance(source, TableRows):
                raise DataError(
                    "data.kind is 'table' and the site's data are images; correct the study or the site's "
                    "folder"
                )
            self.index = source.index
            self._table(source, settings)
        else:
            if isinstance(source, TableRows):
                raise DataError(
                    "data.kind is 'images' and the site's data are a table; correct the study or the "
                    "site's file"
                )
            self.index = source
            self._images(settings, cache)
        self.notes = (*self.index.notes, *self.notes)

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: AnyData,
        needs: Needs,
        *,
        site_secret: bytes,
        batch: int = 1,
        seed: int = 0,
        classes: int | None = None,
        cache: CacheLocation | None = None,
        steps: int | None = None,
    ) -> SiteDataModule:
        """Return the data of a site's folder or table."""
        source: Index | TableRows
        if isinstance(settings, Table):
            source = read_table(path, settings, site_secret=site_secret, classes=classes)
        else:
            source = index_folder(path, site_secret=site_secret, fractions=settings.fractions)
        return cls(
            source,
            settings,
            needs,
            batch=batch,
            seed=seed,
            classes=classes,
            cache=cache,
            steps=steps,
        )

    # --- what there is --------------------------------------------------------------------------------------

    def cases(self, split: str) -> tuple[Case, ...]:
        """Return the cases of one split that the task can use."""
        return tuple(case for case in self.index.split(split) if case.token in self._usable)

    @property
    def rows(self) -> TableRows:
        """The site's table.

        Raises:
            DataError: if its data are images.
        """
        if self._rows is None:
            raise DataError("the site's data are images, and hold no table")
        return self._rows

    @property
    def examples(self) -> int:
        """How many training cases this site's weights stand for, however often or in how many patches they
        are seen.
        """
        return len(self.cases("train"))

    def items_by_patient(self) -> tuple[tuple[int, ...], ...]:
        """Return the numbers of the training items of each training patient, in the order of `patients`."""
        dataset: Any = self.dataset("train", training=True)
        each = len(dataset) // max(len(dataset.cases), 1)
        items: dict[str, list[int]] = {}
        for number, case in enumerate(dataset.cases):
            items.setdefault(case.patient, []).extend(range(number * each, (number + 1) * each))
        return tuple(tuple(items[patient]) for patient in sorted(items))

    def patients(self, split: str) -> tuple[str, ...]:
        """Return the patients of one split as the hospital calls them, sorted; nobody else may see them."""
        return tuple(sorted({case.patient for case in self.cases(split)}))

    def dataset(self, split: str, *, training: bool = False) -> Dataset:
        """Return one split as a dataset; with `training`, as random patches with augmentation."""
        if self._rows is not None:
            chosen = [i for i, case in enumerate(self._rows.index.cases) if case.split == split]
            cases = [self._rows.index.cases[i] for i in chosen]
            targets = self._rows.targets[chosen] if len(self._rows.targets) else self._rows.targets
            return TableDataset(self._features[chosen], targets, cases)
        assert isinstance(self.settings, Images)
        return ImageDataset(
            self.cases(split),
            self.settings,
            self.needs,
            training=training,
            seed=self.seed,
            classes=self.classes,
            store=self._store,
        )

    def train_dataloader(self) -> DataLoader:
        """Return the training batches, shuffled by torch's global generator; the caller seeds it."""
        if not self.examples:
            raise DataError(
                f"the site has no training case ({self.index.describe()}); mark some as 'train' in the "
                "column 'split'"
            )
        dataset = self.dataset("train", training=True)
        if self.steps is not None:
            return self._stepped(dataset, self.steps)
        return self._loader(dataset, self.batch, shuffle=True)

    def _stepped(self, dataset: Dataset, steps: int) -> DataLoader:
        if self.trainer is not None and self.trainer.world_size > 1:
            raise DataError(
                f"train.steps counts the batches of one process, and this site trains in {self.trainer.world_size}; "
                "leave train.steps out and count by train.epochs"
            )
        # The first case's salted token, so that sites of one seed don't visit their cases in one order.
        order = f"{self.seed}/{self.index.cases[0].token}"
        batches = FixedStepBatchSampler(len(dataset), self.batch, steps, order)  # type: ignore[arg-type]
        return DataLoader(
            dataset, batch_sampler=batches, num_workers=self.settings.workers, collate_fn=collate
        )

    def val_dataloader(self) -> DataLoader:
        """Return the validation batches."""
        return self._loader(self.dataset("val"), self._whole_batch, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        """Return the test batches."""
        return self._loader(self.dataset("test"), self._whole_batch, shuffle=False)

    def predict_dataloader(self) -> DataLoader:
        """Return the test batches, for `Trainer.predict`."""
        return self.test_dataloader()

    @property
    def _whole_batch(self) -> int:
        return 1 if self.needs == "segment" or getattr(self.settings, "patch", 0) is None else self.batch

    def _loader(self, dataset: Dataset, batch: int, *, shuffle: bool) -> DataLoader:
        workers = self.settings.workers
        if (
            workers
            and isinstance(dataset, ImageDataset)
            and isinstance(self.settings, Images)
            and self.settings.cache == "memory"
        ):
            # Worker processes live for one epoch; what they prepared would be gone with them.
            for case in dataset.cases:
                dataset.prepared(case)
        return DataLoader(dataset, batch_size=batch, shuffle=shuffle, num_workers=workers, collate_fn=collate)

    # --- evaluation -----------------------------------------------------------------------------------------

    def prepared(self, case: Case) -> Prepared:
        """Return a case as the network sees it whole."""
        dataset = self.dataset(case.split)
        assert isinstance(dataset, ImageDataset)
        return in_memory(dataset.prepared(case))

    def case(self, token: str) -> Case:
        """Return the case that a token names.

        Raises:
            DataError: if this site has none of that token.
        """
        if token not in self._by_token:
            raise DataError(f"this site has no case {token}; was it indexed with another site secret?")
        return self._by_token[token]

    def original(self, case: Case | str) -> tuple[Volume, Volume | None]:
        """Return a case's image and label as they are in its files."""
        case = self.case(case) if isinstance(case, str) else case
        assert isinstance(self.settings, Images)
        return read_case(case, self.settings, self.classes)

    def restored(self, array: Any, case: Case | str, *, nearest: bool = True) -> Any:
        """Return a prediction (K, X, Y, Z) for a prepared case on the grid of the case's files."""
        case = self.case(case) if isinstance(case, str) else case
        return restore(array, self.prepared(case), nearest=nearest)

    # --- setting up -----------------------------------------------------------------------------------------

    def _images(self, settings: Images, cache: CacheLocation | None) -> None:
        usable: Callable[[Case], bool]
        if self.needs == "segment":
            usable, what = (lambda case: case.label is not None), "label"
        elif self.needs == "classify":
            usable, what = (lambda case: case.target is not None), "target"
        else:
            raise DataError(
                "the task needs a table and data.kind is 'images'; set data.kind to 'table' (needs: "
                f"{self.needs})"
            )
        kept = [case for case in self.index.cases if usable(case)]
        if not kept:
            raise DataError(
                f"no case of the site has a {what}, which the task needs ({self.index.describe()})"
            )
        if len(kept) < len(self.index.cases):
            self.notes += (f"{len(self.index.cases) - len(kept)} cases have no {what} and are left out",)
        if self.needs == "classify" and self.classes is not None:
            for case in kept:
                if case.target is not None and case.target >= self.classes:
                    raise DataError(
                        f"case {case.token}: its target is no class of the task, which has {self.classes}; "
                        "correct the column 'target'"
                    )
        self._keep(kept)
        self._store = open_cache(settings, cache.folder if cache else None, self.needs, self.classes)
        if cache is not None and cache.note and settings.cache == "disk":
            self.notes += (cache.note,)

    def _table(self, rows: TableRows, settings: Table) -> None:
        if self.needs == "table" and settings.target is None:
            raise DataError("the task predicts a class; name its column in data.target")
        if self.needs == "survival" and settings.time is None:
            raise DataError("the task predicts survival; name the columns in data.time and data.event")
        if self.needs not in ("table", "survival"):
            raise DataError(
                "the task needs images and data.kind is 'table'; set data.kind to 'images' (needs: "
                f"{self.needs})"
            )
        scaling, self.notes = fit_scaling(rows, settings)
        self._rows = rows
        self._features = network_inputs(rows, scaling, settings)
        self._keep(rows.index.cases)

    def _keep(self, cases: Any) -> None:
        self._by_token = {case.token: case for case in cases}
        self._usable = frozenset(self._by_token)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch: tensors stacked, tokens listed.

    Raises:
        DataError: where images of different sizes would be stacked, with the cure.
    """
    batch: dict[str, Any] = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        if isinstance(first, torch.Tensor):
            if any(value.shape != first.shape for value in values):
                raise DataError("the cases of a batch differ in size; set data.patch, or train.batch to 1")
            batch[key] = torch.stack(values)
        else:
            batch[key] = values
    return batch
