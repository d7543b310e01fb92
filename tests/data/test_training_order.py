"""Which of a site's cases train, and in which order: validation cases come last, and train as others do."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import SequentialSampler

from medfed.data.datamodule import SiteDataModule
from medfed.data.samplers import FixedStepBatchSampler, LastRoundsSampler
from medfed.data.settings import Images, Table
from medfed.data.training_order import TrainingOrder
from medfed.errors import DataError

from .hospital_folder import SAMPLES, SECRET


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, item):
        return {"x": torch.tensor(item)}


def flat(batches: list[list[int]]) -> list[int]:
    return [item for batch in batches for item in batch]


def seen(loader) -> list[list[int]]:
    return [batch["x"].tolist() for batch in loader]


def test_the_batches_before_the_last_rounds_are_those_of_a_study_without_them():
    # All five train: one loader shuffles, the other could draw from more.
    plain, other = TrainingOrder(range(5), 2, "s"), TrainingOrder(range(5), 2, "s", on_all=True)
    drawn = []
    for order in (plain, other):
        loader = order.loader(Numbers(), 0)
        torch.manual_seed(1)
        drawn.append(seen(loader) + seen(loader))
    assert drawn[0] == drawn[1]
    assert [len(batch) for batch in drawn[0]] == [2, 2, 1] * 2


def test_an_epoch_has_as_many_batches_when_all_train():
    loader = TrainingOrder(range(3), 2, "s", on_all=True).loader(Numbers(), 0)
    assert isinstance(loader.sampler, LastRoundsSampler)
    assert sorted(flat(seen(loader))) == [0, 1, 2]
    loader.sampler.train_on_all(0)
    first = seen(loader)
    loader.sampler.train_on_all(1)
    second = seen(loader)
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [2, 1]
    assert len({*flat(first), *flat(second)}) == 5  # six items: a pass over five, and one more


def test_fixed_steps_are_kept_too():
    loader = TrainingOrder([0, 1], 2, "s", steps=4, on_all=True).loader(Numbers(), 0)
    assert isinstance(loader.batch_sampler, FixedStepBatchSampler)
    assert [sorted(batch) for batch in seen(loader)] == [[0, 1]] * 4
    loader.batch_sampler.train_on_all(0)
    assert [len(batch) for batch in seen(loader)] == [2, 2, 1, 2]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"steps": 3}, "train.steps counts the batches of one process, and this site trains in 2; omit"),
        (
            {"on_all": True},
            "train.last_rounds_on_all counts the batches of one process, and this site trains",
        ),
    ],
    ids=str,
)
def test_several_processes_would_each_draw_all(order, said):
    TrainingOrder(range(3), 2, "s", **order).check_processes(1)
    TrainingOrder(range(3), 2, "s").check_processes(2)
    with pytest.raises(DataError, match=said):
        TrainingOrder(range(3), 2, "s", **order).check_processes(2)


def hospital(**options) -> SiteDataModule:
    settings = Images(patch=(16, 16, 16), samples=2)
    return SiteDataModule.open(
        SAMPLES / "north", settings, "segment", site_secret=SECRET, classes=2, batch=2, **options
    )


def test_validation_cases_train_as_others_do_on_random_patches():
    plain, data = hospital(), hospital(on_all=True)
    train, val = (len(data.cases(split)) for split in ("train", "val"))
    assert train > 0 < val
    assert (data.examples, data.examples_on_all, data.training_items) == (train, train + val, 2 * train)
    assert (plain.examples, plain.examples_on_all) == (train, train)
    both, before = data.training_dataset(), plain.training_dataset()
    assert [len(both), len(before)] == [2 * (train + val), 2 * train]
    # The items of training cases are those of a study without the key; those behind are validation cases'.
    assert all(torch.equal(both[item]["image"], before[item]["image"]) for item in range(2 * train))
    tokens = [both[item]["case"] for item in range(2 * train, 2 * (train + val))]
    assert tokens == [case.token for case in data.cases("val") for _ in range(2)]
    assert both[2 * train]["image"].shape == (1, 16, 16, 16)
    first, second = both[2 * train]["image"], both[2 * train + 1]["image"]
    assert not torch.equal(first, second)
    assert isinstance(data.val_dataloader().sampler, SequentialSampler)


def test_rows_of_validation_patients_come_behind_those_of_training(tmp_path):
    rows = [(1, "val"), (2, "train"), (3, "test"), (4, "train"), (5, "val")]
    (tmp_path / "a.csv").write_text("x,y,split\n" + "".join(f"{x},{x % 2},{split}\n" for x, split in rows))
    settings = Table(features=("x",), target="y", standardise="none")
    data = SiteDataModule.open(tmp_path / "a.csv", settings, "table", site_secret=b"k", batch=2, on_all=True)
    found = [data.training_dataset()[item] for item in range(4)]
    assert [int(row["features"]) for row in found] == [2, 4, 1, 5]
    assert [int(row["target"]) for row in found] == [0, 0, 1, 1]
    assert [row["case"] for row in found] == [
        c.token for split in ("train", "val") for c in data.cases(split)
    ]
