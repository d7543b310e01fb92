"""Hospitals that label different organs train one network that finds them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hospitals import write_study
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import StudyError
from medfed.federation.callback import FederatedCallback
from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.losses.dicece import DiceCE
from medfed.models.networks.unet import UNet
from medfed.models.optimisers.adamw import AdamW
from medfed.models.schedules.constant import Constant
from medfed.models.tasks import Training
from medfed.models.tasks._partial_labels import marginal, merged_logits, merged_target
from medfed.models.tasks.segment import Segment
from medfed.wire.weights import load, weights_of

torch.set_num_threads(1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.sampled_from([(1,), (2,), (1, 3), (2, 3), (1, 2, 3)]))
def test_the_marginal_loss_is_cross_entropy_of_added_probabilities(seed: int, kept: tuple[int, ...]) -> None:
    draw = np.random.default_rng(seed)
    logits, target = draw.normal(size=(5, 4)) * 3, draw.integers(0, 4, 5)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = []
    for row, label in zip(p, target, strict=True):
        unlabelled = [k for k in range(4) if k not in kept]
        losses.append(-np.log(row[label] if label in kept else row[unlabelled].sum()))
    result = marginal(CrossEntropy(), 4, kept)(torch.from_numpy(logits), torch.from_numpy(target))
    assert float(result) == pytest.approx(float(np.mean(losses)), rel=1e-9)


def test_added_probabilities_are_a_softmax_of_the_merged_logits() -> None:
    logits = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)
    merged = merged_logits(logits, (2,)).softmax(1)
    torch.testing.assert_close(merged[:, 0], p[:, 0] + p[:, 1] + p[:, 3])
    torch.testing.assert_close(merged[:, 1], p[:, 2])
    assert merged_target(torch.tensor([0, 1, 2, 3]), (2,)).tolist() == [0, 0, 1, 0]


def test_an_unlabelled_organ_is_not_unlearned() -> None:
    # A voxel that shows organ 2, at a hospital that labels organ 1 only: background or organ 2 are the
    # same to it.
    logits = torch.tensor([[0.0, 0.0, 8.0]], requires_grad=True)
    marginal(CrossEntropy(), 3, (1,))(logits, torch.tensor([0])).backward()
    usual = torch.tensor([[0.0, 0.0, 8.0]], requires_grad=True)
    CrossEntropy().build(3)(usual, torch.tensor([0])).backward()
    assert float(logits.grad.abs().max()) < 1e-3 < 0.9 < float(usual.grad.abs().max())


def test_class_weights_follow_their_classes() -> None:
    logits, target = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 2, 2, 0, 0, 2]),
    )
    result = marginal(CrossEntropy(weights=(1.0, 5.0, 3.0)), 3, (2,))(logits, target)
    merged = torch.stack([torch.logsumexp(logits[:, :2], 1), logits[:, 2]], 1)
    expected = nn.functional.cross_entropy(merged, (target == 2).long(), weight=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(result, expected)


def test_a_hospital_that_labels_everything_has_the_loss_it_always_had() -> None:
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    target = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    assert torch.equal(marginal(DiceCE(), 3, (1, 2))(logits, target), DiceCE().build(3)(logits, target))


def test_labelled_classes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match="labelled: north: 'spleen' is not one of the foreground classes liver"
    ):
        Segment(classes=("background", "liver"), labelled={"north": ("spleen",)})
    with pytest.raises(StudyError, match="labelled: north: names 0 classes"):
        Segment(classes=("background", "liver"), labelled={"north": ()})
    with pytest.raises(
        StudyError, match=r"task\.labelled: 'nroth' is not one of the study's sites; did you mean 'north'"
    ):
        medfed.read_study(write_study(tmp_path), ["task.labelled={nroth: [lesion]}"])


class Organs(Dataset):
    """A bright and a dark disc in grey; only some are drawn in the labels."""

    def __init__(self, count: int, seed: int, drawn: tuple[int, ...]) -> None:
        draw = np.random.default_rng(seed)
        self.items = []
        for _ in range(count):
            image, label = draw.normal(0, 0.1, (1, 24, 24)), np.zeros((1, 24, 24), np.uint8)
            for organ, value, x in ((1, 1.0, 6), (2, -1.0, 17)):
                y, r = draw.integers(6, 18), draw.integers(3, 5)
                inside = (np.arange(24)[:, None] - x) ** 2 + (np.arange(24) - y) ** 2 <= r**2
                image[0, inside] += value
                if organ in drawn:
                    label[0, inside] = organ
            self.items.append(
                {"case": "c", "image": torch.from_numpy(image).float(), "label": torch.from_numpy(label)}
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def organ_dice(labelled: dict[str, tuple[str, ...]]) -> list[float]:
    """The Dice of both organs on fully labelled cases, after two hospitals trained that drew one organ "
    "each."""
    task = Segment(classes=("background", "liver", "spleen"), labelled=labelled)

    def module(site: str = "") -> pl.LightningModule:
        torch.manual_seed(0)
        network = UNet(spatial_dims=2, channels=(8, 16), residual_units=0).build(1, 3, (24, 24))
        return task.module(network, Training(AdamW(lr=0.02), Constant(), epochs=15, site=site))

    def site(name: str, drawn: int):
        def work(exchange):
            trainer = pl.Trainer(
                max_epochs=15,
                callbacks=[FederatedCallback(name, exchange, 3, seed=0)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                accelerator="cpu",
            )
            trainer.fit(module(name), DataLoader(Organs(8, drawn, (drawn,)), 4))

        return work

    sites = {"north": site("north", 1), "south": site("south", 2)}
    final = medfed.run_federation(sites, weights_of(module()), rule=FedAvg(), rounds=5)
    merged = module().eval()
    load(merged, final.weights)
    cases = Organs(10, 9, (1, 2))
    image, label = (
        torch.stack([c["image"] for c in cases.items]),
        torch.stack([c["label"] for c in cases.items]),
    )
    with torch.inference_mode():
        predicted = task.labels(merged(image))
    return [
        float(2 * ((predicted == k) & (label == k)).sum() / ((predicted == k).sum() + (label == k).sum()))
        for k in (1, 2)
    ]


@pytest.mark.slow
def test_two_hospitals_that_drew_one_organ_each_train_a_network_that_finds_both() -> None:
    both = organ_dice({"north": ("liver",), "south": ("spleen",)})
    assert min(both) > 0.9
    # Told nothing, each hospital teaches that the other's organ is background.
    assert min(organ_dice({})) < min(both) - 0.1
