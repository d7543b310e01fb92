"""Batches of a dataset: which it is told of, and collated alike with and without workers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import ConcatDataset, TensorDataset

from medfed.data import loader
from medfed.data.loader import batch_loader

from .hospital_folder import SAMPLES, SECRET


class Numbers(TensorDataset):
    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {"x": self.tensors[0][item]}


def test_batches_are_those_that_were_asked_for() -> None:
    numbers = Numbers(torch.arange(5))
    assert [batch["x"].tolist() for batch in batch_loader(numbers, 0, batch_size=2)] == [[0, 1], [2, 3], [4]]
    assert [batch["x"].tolist() for batch in batch_loader(numbers, 0, batch_sampler=[[4, 0]])] == [[4, 0]]


@pytest.mark.parametrize(("workers", "imports"), [(0, 0), (2, 2)])
def test_each_part_of_a_pooled_dataset_is_imported_for_once(
    workers: int, imports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfed.data.datamodule import SiteDataModule
    from medfed.data.settings import Images

    data = SiteDataModule.open(SAMPLES / "university", Images(), "segment", site_secret=SECRET, classes=2)
    seen: list[int] = []
    monkeypatch.setattr(loader, "import_for_workers", lambda cases, *_: seen.append(len(cases)))
    part = data.dataset("test")
    batch_loader(ConcatDataset([part, part]), workers, batch_size=1)
    assert seen == [len(part)] * imports  # type: ignore[arg-type]
