"""A site's batches: what is in them, what they follow from, and what they never hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from medfed.data.datamodule import SiteDataModule
from medfed.data.settings import Images, Table
from medfed.errors import DataError

torch.set_num_threads(1)

SECRET = b"a site's secret of some length"
SAMPLES = Path(__file__).parents[2] / "sample_data"
SETTINGS = Images(spacing_mm=(4.0, 4.0, 4.0), patch=(16, 16, 16), samples=2)


def site(
    hospital: str = "south", settings: Images = SETTINGS, needs: str = "segment", **more: object
) -> SiteDataModule:
    return SiteDataModule.open(SAMPLES / hospital, settings, needs, site_secret=SECRET, classes=2, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def south() -> SiteDataModule:
    return site(batch=4)


def test_a_segmentation_batch(south: SiteDataModule) -> None:
    batch = next(iter(south.train_dataloader()))
    assert set(batch) == {"image", "label", "case"}
    assert tuple(batch["image"].shape) == (4, 1, 16, 16, 16)
    assert tuple(batch["label"].shape) == (4, 1, 16, 16, 16)
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.float32, torch.int64)
    assert (
        batch["image"].min() >= -1.6
    )  # percentiles to -1 and 1, then a tenth of brightness, contrast and noise
    assert set(batch["case"]) <= {case.token for case in south.cases("train")}


def test_validation_sees_whole_volumes_one_at_a_time(south: SiteDataModule) -> None:
    batches = list(south.val_dataloader())
    assert len(batches) == 3
    for batch in batches:
        assert batch["image"].shape[0] == 1
        assert batch["image"].shape == batch["label"].shape
        assert min(batch["image"].shape[2:]) > 20
    assert [b["case"][0] for b in batches] == [case.token for case in south.cases("val")]


def test_examples_are_cases_and_not_patches(south: SiteDataModule) -> None:
    assert south.examples == 12
    assert len(south.dataset("train", training=True)) == 24  # type: ignore[arg-type]


def test_a_classification_batch() -> None:
    data = site("east", needs="classify", batch=3)
    batch = next(iter(data.train_dataloader()))
    assert tuple(batch["image"].shape) == (3, 1, 16, 16, 16)
    assert (tuple(batch["target"].shape), batch["target"].dtype) == ((3,), torch.int64)
    whole = torch.cat([b["target"] for b in data.val_dataloader()])
    assert whole.tolist() == [case.target for case in data.cases("val")]


@pytest.mark.parametrize("workers", [1, 2])
def test_items_follow_from_seed_and_number_not_from_workers(workers: int) -> None:
    import msgspec

    def batches(settings: Images) -> list[torch.Tensor]:
        data = site(settings=settings, batch=5)
        loader = data.train_dataloader()
        torch.manual_seed(3)
        loader.dataset.set_random_state(11)  # type: ignore[attr-defined]
        return [batch["image"] for batch in loader]

    expected = batches(SETTINGS)
    result = batches(msgspec.structs.replace(SETTINGS, workers=workers))
    assert len(expected) == len(result)
    for one, two in zip(expected, result, strict=True):
        assert torch.equal(one, two)


def test_the_order_in_which_items_are_asked_for_does_not_matter() -> None:
    forward, backward = (site().dataset("train", training=True) for _ in range(2))
    expected = [forward[i]["image"] for i in range(6)]
    for i in reversed(range(6)):
        assert torch.equal(backward[i]["image"], expected[i])


def test_another_seed_draws_otherwise(south: SiteDataModule) -> None:
    dataset = south.dataset("train", training=True)
    dataset.set_random_state(1)  # type: ignore[attr-defined]
    first = dataset[0]["image"]
    dataset.set_random_state(2)  # type: ignore[attr-defined]
    assert not torch.equal(first, dataset[0]["image"])


def test_a_batch_can_be_changed_without_changing_the_cache(south: SiteDataModule) -> None:
    for dataset in (south.dataset("val"), south.dataset("train", training=True)):
        before = dataset[0]["image"].clone()
        dataset[0]["image"].fill_(7)
        assert torch.equal(dataset[0]["image"], before)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_caches_give_the_same(cache: str) -> None:
    import msgspec

    expected = site().dataset("val")[1]
    result = site(settings=msgspec.structs.replace(SETTINGS, cache=cache)).dataset("val")[1]
    assert torch.equal(result["image"], expected["image"])


def test_original_and_restored_lie_on_the_files_grid(south: SiteDataModule) -> None:
    case = next(case for case in south.cases("test") if case.target == 1)
    volume, label = south.original(case.token)
    assert label is not None
    assert volume.array.shape == (1, 37, 37, 35)
    back = south.restored(south.prepared(case).label, case)
    assert back.shape == label.array.shape
    overlap = 2 * (back * label.array).sum() / (back.sum() + label.array.sum())
    assert overlap > 0.8  # 3 mm to 4 mm and back costs some of a small lesion's rim


def test_a_token_of_another_site(south: SiteDataModule) -> None:
    with pytest.raises(DataError, match="no case 0123456789ab"):
        south.case("0123456789ab")


def test_a_hospital_that_is_held_out_cannot_train() -> None:
    data = site("university")
    assert data.examples == 0
    with pytest.raises(DataError, match="no training case"):
        data.train_dataloader()


def test_images_that_differ_in_size_need_a_patch() -> None:
    settings = Images(spacing_mm="native", patch=None, augment="none")
    data = SiteDataModule.open(SAMPLES / "university", settings, "segment", site_secret=SECRET, classes=2)
    items = [{"image": torch.zeros(1, 2, 2, 2)}, {"image": torch.zeros(1, 2, 2, 3)}]
    from medfed.data.samplers import collate

    with pytest.raises(DataError, match=r"differ in size; set data\.patch"):
        collate(items)
    assert data.dataset("test")[0]["image"].ndim == 4


@pytest.mark.parametrize(
    ("settings", "needs", "word"),
    [
        (SETTINGS, "table", "data.kind to 'table'"),
        (Table(features=("a",), target="b"), "segment", "are images"),
    ],
)
def test_task_and_data_of_two_kinds(settings: Images, needs: str, word: str) -> None:
    from medfed.data.index import index_folder

    index = index_folder(SAMPLES / "south", site_secret=SECRET)
    with pytest.raises(DataError, match=word):
        SiteDataModule(index, settings, needs)  # type: ignore[arg-type]


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.conv(batch["image"]), batch["label"][:, 0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_checkpoint_holds_no_path_and_no_name(tmp_path: Path) -> None:
    data = site(batch=4)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_train_batches=2,
        enable_checkpointing=True,
    )
    trainer.fit(Tiny(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert dict(data.hparams) == {}
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    buffer = io.BytesIO()
    torch.save({key: value for key, value in saved.items() if key != "loops"}, buffer)
    content = (tmp_path / "x.ckpt").read_bytes() + buffer.getvalue() + repr(saved).encode()
    for word in (b"south-", b"S01", b"sample_data", b"images/", b".nii", str(SAMPLES).encode()):
        assert word not in content
    for case in data.index.cases:
        assert case.id.encode() not in content


def test_every_batch_is_plain_tensors(south: SiteDataModule) -> None:
    for loader in (south.train_dataloader(), south.val_dataloader()):
        batch = next(iter(loader))
        assert type(batch["image"]) is torch.Tensor
        assert type(batch["label"]) is torch.Tensor
        assert all(isinstance(case, str) and len(case) == 12 for case in batch["case"])


def test_numpys_global_state_is_left_alone(south: SiteDataModule) -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]  # noqa: NPY002
    south.dataset("train", training=True)[0]
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr,index]  # noqa: NPY002
