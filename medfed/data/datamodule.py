"""One site's cases as a LightningDataModule: training, validation and test batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from medfed.data.batch_needs import PATCH_NEEDS, Needs
from medfed.data.cache import NoCache, in_memory, open_cache
from medfed.data.cache_location import CacheLocation
from medfed.data.case import Case
from medfed.data.case_reading import moved_line, moved_parts, naming, read_case
from medfed.data.case_table import case_inputs, with_table
from medfed.data.channels import match_channels, with_own_names
from medfed.data.class_names import Classes, ClassNames, count_of
from medfed.data.datamodules import DataModule
from medfed.data.dataset import CaseValues, ImageDataset, used_part
from medfed.data.findings import Findings, read_findings
from medfed.data.index import Index, index_folder
from medfed.data.label_naming import match_classes
from medfed.data.loader import batch_loader
from medfed.data.own_data import OwnData
from medfed.data.own_dataset import (
    OwnDataset,
    check_serves,
    index_own,
    prepared_of,
    unmeasured_note,
    volumes_of,
)
from medfed.data.samplers import Batch
from medfed.data.screening import (
    Screening,
    count_reasons,
    duplicate_lines,
    left_out_line,
    refuse_excess,
    require_training_cases,
    screen_cases,
    usable_cases,
    without_refused,
)
from medfed.data.settings import AnyData, Images, Table, Unreadable
from medfed.data.table import TableDataset, TableRows, fit_scaling, network_inputs, read_table
from medfed.data.training_order import TrainingOrder
from medfed.data.transforms import Prepared, restore
from medfed.data.volume import Volume
from medfed.data.whole_images import (
    CheckSize,
    Extent,
    check_extents,
    check_whole_size,
    prepared_extent,
    unit_of,
)
from medfed.errors import DataError


class LoadingOptions(TypedDict, total=False):
    """The keyword arguments of `SiteDataModule` that say how batches are made."""

    batch: int
    seed: int
    cache: CacheLocation | None
    steps: int | None
    on_all: bool


class SiteDataModule(pl.LightningDataModule):
    """A site's training, validation and test batches.

    A batch is a dictionary: `image` (B, C, X, Y, Z) float32 with `label` (B, 1, X, Y, Z) int64 (segmentation)
    or `target` (B,) int64 (classification) or (B, K) float32 of 1, 0 or NaN (several findings); or `features`
    (B, F) float32 with `target` (B,) int64 or (B, 2) float32 of time and event (survival); and `case`, a list
    of tokens; with a table beside the images also `tabular` (B, F) float32. Segmentation trains on patches;
    it validates and tests on whole volumes, one at a time, as they differ in size. So does what needs images
    alone (`image`), of cases with a label or without one.

    It saves nothing: Lightning finds neither hyperparameters nor state, so a checkpoint can hold no path and
    no name.

    Args:
        source: the site's index (or its rows, for a table); `SiteDataModule.open` makes it from a folder.
        settings: the study's `data` section.
        needs: what the task needs in a batch.
        batch: training items per step: patches for segmentation, else cases.
        seed: decides augmentation and the order of training items, until `set_random_state` and torch's own
            seed replace it.
        classes: the task's classes by name, or how many there are, the background included; labels and
            targets are matched to them, or checked against their number. Several findings need the names,
            which are their columns.
        cache: where `cache: disk` keeps prepared volumes.
        steps: how many training batches an epoch has; one pass over the training cases if None.
        on_all: whether validation cases train in the last rounds (`train.last_rounds_on_all`).
    """

    def __init__(
        self,
        source: Index | TableRows,
        settings: AnyData,
        needs: Needs,
        *,
        batch: int = 1,
        seed: int = 0,
        classes: Classes = None,
        cache: CacheLocation | None = None,
        steps: int | None = None,
        on_all: bool = False,
    ) -> None:
        super().__init__()
        self.training_splits = ("train", "val") if on_all else ("train",)
        self.names = classes.classes if isinstance(classes, ClassNames) else ()
        self.steps = steps
        # Raises for an image size that the study's network cannot take, where it sees whole images.
        self.check_size: CheckSize | None = None
        # What measures images that the study leaves as they are, as `leave_out` has found it: mm, px, or ''.
        self.unit = ""
        self.settings = settings
        self.needs = needs
        self.batch = batch
        self.seed = seed
        self.classes = count_of(classes)
        self.label_classes = classes
        self.notes: tuple[str, ...] = ()
        # What `leave_out` left out, by reason, and these cases' tokens.
        self.left_out: dict[str, int] = {}
        self.left_out_tokens: tuple[str, ...] = ()
        # What a person should look at before the study trains; they are notes, too.
        self.warnings: tuple[str, ...] = ()
        # Of the images that were read, by token.
        self.image_digests: dict[str, bytes] = {}
        self._rows: TableRows | None = None
        self._cache: NoCache | None = None
        self._findings: dict[str, Findings] = {}
        self._tabular: Mapping[str, torch.Tensor] | None = None
        if isinstance(settings, DataModule):
            if isinstance(source, TableRows):
                raise DataError("data.kind is a data module of the study's own; it lists cases, not rows")
            check_serves(settings, needs)
            self.index = source
            self.notes = unmeasured_note(needs)
            self._use(source.cases)
        elif isinstance(settings, Table):
            if not isinstance(source, TableRows):
                raise DataError(
                    "data.kind is 'table' and the site's data are images; correct the study or the site's "
                    "folder"
                )
            self.index = source.index
            self._set_up_table(source, settings)
        else:
            if isinstance(source, TableRows):
                raise DataError(
                    "data.kind is 'images' and the site's data are a table; correct the study or the "
                    "site's file"
                )
            self.index = match_channels(source, settings)
            self._set_up_images(settings, cache)
        self.notes = (*self.index.notes, *self.notes, *self.warnings)

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: AnyData,
        needs: Needs,
        *,
        site_secret: bytes,
        classes: Classes = None,
        own: OwnData | None = None,
        **options: Unpack[LoadingOptions],
    ) -> SiteDataModule:
        """Return the data of a site's folder or table; the other arguments are those of the class.

        `own` gives the site's headings for the columns of the study's table, its table beside the images, and
        its words for the study's channels.
        """
        source: Index | TableRows
        if isinstance(settings, DataModule):
            source = index_own(path, settings, site_secret)
        elif isinstance(settings, Table):
            source = read_table(
                path,
                settings,
                site_secret=site_secret,
                classes=count_of(classes),
                own_headings=own.headings if own is not None else {},
            )
        else:
            source = index_folder(
                path,
                site_secret=site_secret,
                fractions=settings.fractions,
                fold=settings.fold,
                layout=settings.given_layout,
            )
            source = with_own_names(source, own.channels if own is not None else {})
            source = with_table(source, settings.table, own)
            source, classes = match_classes(source, classes, needs, site_secret)
        return cls(source, settings, needs, classes=classes, **options)

    # --- cases that cannot be used -------------------------------------------------------------------------

    def screen(
        self, *, prepare: bool = True, progress: Callable[[int, int], None] = lambda done, cases: None
    ) -> Screening:
        """Return what reading each usable case once shows; with `prepare`, the cache keeps what was read.

        A row of a table was read with its table. `leave_out` applies the result.
        """
        if self._rows is not None:
            return Screening()
        if isinstance(self.settings, DataModule):
            return self._screen_own(progress)
        assert isinstance(self.settings, Images)
        cases = tuple(self._by_token.values())
        dataset = ImageDataset(
            cases, self.settings, self.needs, training=False, classes=self.label_classes, cache=self._cache
        )

        moved: Counter[str] = Counter()
        extents: dict[str, Extent] = {}

        def note_extent(case: Case, extent: Extent) -> None:
            with naming(case):
                check_whole_size(extent, dataset.settings, self.check_size)
            extents[case.token] = extent

        def read(case: Case) -> Any:
            if self.index.rows is not None:
                self.index.rows.check(case)
            if prepare:
                prepared = dataset.prepared(case)
                note_extent(case, prepared_extent(prepared, dataset.settings))
                moved.update(prepared.moved)
                return prepared.image
            image, label = read_case(used_part(case, self.needs), dataset.settings, self.label_classes)
            moved.update(moved_parts(image, label))
            return image.array

        screening = screen_cases(cases, read, lambda done: progress(done, len(cases)))
        screening = replace(screening, extents=extents)
        self.notes += tuple(moved_line(part, count, len(cases)) for part, count in sorted(moved.items()))
        return screening

    def _screen_own(self, progress: Callable[[int, int], None]) -> Screening:
        cases, dataset = tuple(self._by_token.values()), self._own_dataset(())
        return screen_cases(cases, dataset.content, lambda done: progress(done, len(cases)))

    def leave_out(self, screening: Screening, bears: Unreadable) -> None:
        """Leave out the refused cases, within what the site bears, and note them and duplicate images.

        Raises:
            DataError: if the site does not bear as many, none is left, or the others differ in size where
                they must not.
        """
        refused, listed = screening.refused, tuple(self._by_token.values())
        self.image_digests = {case.token: digest for case, digest in screening.digests}
        refuse_excess(refused, len(listed), bears)
        if isinstance(self.settings, Images):
            usable, splits = without_refused(listed, refused), self.training_splits
            check_extents(usable, screening.extents, self.settings, self.batch, splits)
            self.unit = unit_of(screening.extents.values(), self.settings)
        duplicates = duplicate_lines(screening.digests)
        self.warnings += duplicates
        self.notes += duplicates
        if not refused:
            return
        self.left_out = count_reasons(refused)
        self.notes += (left_out_line(self.left_out, len(listed)),)
        self.leave_out_tokens(one.case.token for one in refused)

    def leave_out_tokens(self, tokens: Iterable[str]) -> None:
        """Leave out the cases of these tokens, which `leave_out` found, perhaps in another process."""
        self.left_out_tokens = tuple(tokens)
        out = frozenset(self.left_out_tokens)
        self.index = replace(self.index, cases=tuple(c for c in self.index.cases if c.token not in out))
        self._use([case for case in self._by_token.values() if case.token not in out])
        if isinstance(self.settings, Images):
            self._set_up_columns(self.settings)

    def require_training_cases(self) -> None:
        """Raise if the site has no training case.

        Raises:
            DataError: saying what the site has instead.
        """
        require_training_cases(self.index, self.cases("train"))

    # --- cases and batches ---------------------------------------------------------------------------------

    def cases(self, split: str) -> tuple[Case, ...]:
        """Return the cases of one split that the task can use."""
        return tuple(case for case in self.index.split(split) if case.token in self._usable)

    @property
    def is_table(self) -> bool:
        """Whether the site's data are the rows of a table."""
        return self._rows is not None

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
        """The number of training cases, the weight of this site's update; patches do not count."""
        return len(self.cases("train"))

    @property
    def examples_on_all(self) -> int:
        """The same in rounds that train on validation cases, too."""
        return sum(len(self.cases(split)) for split in self.training_splits)

    @property
    def federated_examples(self) -> int:
        """The same, where the federated callback looks for it."""
        return self.examples

    def items_by_patient(self) -> tuple[tuple[int, ...], ...]:
        """Return the training items of each training patient, in the order of `patients`."""
        dataset: Any = self.dataset("train", training=True)
        each = len(dataset) // max(len(dataset.cases), 1)
        items: dict[str, list[int]] = {}
        for number, case in enumerate(dataset.cases):
            items.setdefault(case.patient, []).extend(range(number * each, (number + 1) * each))
        return tuple(tuple(items[patient]) for patient in sorted(items))

    def patients(self, split: str) -> tuple[str, ...]:
        """Return the hospital's own ids of one split's patients, sorted; they must not leave the hospital."""
        return tuple(sorted({case.patient for case in self.cases(split)}))

    def dataset(self, split: str, *more: str, training: bool = False) -> Dataset[Batch]:
        """Return one or several splits as a dataset; with `training`, as random patches with augmentation."""
        splits = (split, *more)
        cases = tuple(case for one in splits for case in self.cases(one))
        if self._rows is not None:
            chosen = np.concatenate([np.flatnonzero(self._rows.in_split(one)) for one in splits])
            targets = self._rows.targets[chosen] if len(self._rows.targets) else self._rows.targets
            return TableDataset(self._features[chosen], targets, cases)
        if isinstance(self.settings, DataModule):
            return self._own_dataset(cases, training=training)
        assert isinstance(self.settings, Images)
        return ImageDataset(
            cases,
            self.settings,
            self.needs,
            training=training,
            seed=self.seed,
            classes=self.label_classes,
            cache=self._cache,
            values=CaseValues(self._findings, self._tabular),
        )

    def training_dataset(self) -> Dataset[Batch]:
        """Return all items that train, those of training cases first."""
        return self.dataset(*self.training_splits, training=True)

    @property
    def training_items(self) -> int:
        """How many items train from the first round on."""
        return len(self.dataset("train", training=True))  # type: ignore[arg-type]

    def _own_dataset(self, cases: tuple[Case, ...], *, training: bool = False) -> OwnDataset:
        assert isinstance(self.settings, DataModule)
        return OwnDataset(
            cases, self.settings, self.needs, training=training, seed=self.seed, classes=self.classes
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, shuffled by torch's global generator; the caller seeds it."""
        self.require_training_cases()
        # With the first case's salted token, sites of one seed visit their cases in different orders.
        seed, on_all = f"{self.seed}/{self.index.cases[0].token}", "val" in self.training_splits
        order = TrainingOrder(range(self.training_items), self.batch, seed, self.steps, on_all)
        order.check_processes(1 if self.trainer is None else self.trainer.world_size)
        return order.loader(self.training_dataset(), self.settings.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches."""
        return self._whole_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches."""
        return self._whole_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches, for `Trainer.predict`."""
        return self.test_dataloader()

    def _whole_loader(self, split: str) -> DataLoader[Batch]:
        one_by_one = self.needs in PATCH_NEEDS or getattr(self.settings, "patch", 0) is None
        size = 1 if one_by_one else self.batch
        return batch_loader(self.dataset(split), self.settings.workers, batch_size=size)

    # --- evaluation -----------------------------------------------------------------------------------------

    def prepared(self, case: Case) -> Prepared:
        """Return a whole case as the network sees it."""
        if isinstance(self.settings, DataModule):
            return prepared_of(self._own_dataset(()).whole(case))
        dataset = self.dataset(case.split)
        assert isinstance(dataset, ImageDataset)
        return in_memory(dataset.prepared(case))

    def case(self, token: str) -> Case:
        """Return the case with this token.

        Raises:
            DataError: if this site has no such case.
        """
        if token not in self._by_token:
            raise DataError(f"this site has no case {token}; was it indexed with another site secret?")
        return self._by_token[token]

    def original(self, case: Case | str) -> tuple[Volume, Volume | None]:
        """Return a case's image and label as they are in its files."""
        case = self.case(case) if isinstance(case, str) else case
        if isinstance(self.settings, DataModule):
            return volumes_of(self._own_dataset(()).whole(case))
        assert isinstance(self.settings, Images)
        return read_case(case, self.settings, self.label_classes)

    def restored(self, array: Any, case: Case | str, *, nearest: bool = True) -> Any:
        """Return a prediction (K, X, Y, Z) for a prepared case on the grid of the case's files."""
        case = self.case(case) if isinstance(case, str) else case
        return restore(array, self.prepared(case), nearest=nearest)

    # --- set-up ---------------------------------------------------------------------------------------------

    def _set_up_images(self, settings: Images, cache: CacheLocation | None) -> None:
        if self.needs == "multilabel":
            self._findings = read_findings(self.index.cases, self.names, settings.findings)
        cases, notes = usable_cases(self.index, self.needs, self.classes, self._findings)
        self.notes += notes
        self._use(cases)
        self.notes += self._set_up_columns(settings)
        if self.index.rows is not None:
            self.notes += self.index.rows.notes
            self.warnings = self.index.rows.warnings
        self._check_findings()
        self._cache = open_cache(settings, cache.folder if cache else None, self.needs, self.label_classes)
        if cache is not None and cache.note and settings.cache == "disk":
            self.notes += (cache.note,)

    def _set_up_columns(self, settings: Images) -> tuple[str, ...]:
        """Compute the inputs beside the images from the usable cases' rows; return notes."""
        if settings.table is None:
            return ()
        if self.index.rows is None:
            raise DataError(
                "data.table asks for a table beside the images, and this index was read without it"
            )
        self._tabular, notes = case_inputs(self.index, settings.table, self._by_token.values())
        return notes

    def _check_findings(self) -> None:
        """Note which findings no training case has, or none lacks: nothing can be learnt about them here."""
        training = [self._findings[case.token] for case in self.cases("train") if self._findings]
        for number, name in enumerate(self.names if training else ()):
            values = {findings[number] for findings in training if not math.isnan(findings[number])}
            if len(values) < 2:
                said = {(): "labelled in none", (1.0,): "in each", (0.0,): "in none"}[tuple(values)]
                self.notes += (f"'{name}' is {said} of the site's training cases",)

    def _set_up_table(self, rows: TableRows, settings: Table) -> None:
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
        self.warnings = rows.warnings
        self._rows = rows
        self._features = network_inputs(rows, scaling, settings)
        self._use(rows.index.cases)

    def _use(self, cases: Sequence[Case]) -> None:
        self._by_token: dict[str, Case] = {case.token: case for case in cases}
        self._usable = frozenset(self._by_token)
