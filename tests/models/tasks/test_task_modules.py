"""The LightningModules' training, scores and predictions against plain torch."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medfed.errors import StudyError
from medfed.models.losses.binary_cross_entropy import BinaryCrossEntropy
from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.networks.dynunet import DynUNet
from medfed.models.networks.fully_connected import FullyConnected
from medfed.models.optimisers.sgd import SGD
from medfed.models.schedules.constant import Constant
from medfed.models.tasks import Task, Training
from medfed.models.tasks.classify import Classify
from medfed.models.tasks.segment import Segment
from medfed.models.tasks.survival import Survival
from medfed.models.tasks.tabular import Tabular
from medfed.testing._tasks import trainer

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="pytorch_lightning")


class Given(nn.Module):
    """A network that returns given logits times a weight that starts at one."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * self.logits[: len(image)]


class Thresholds(nn.Module):
    """A voxelwise network that finds a lesion where the image is positive, so windows do not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-self.weight * image, self.weight * image], dim=1)


def module_for(task: Task, network: nn.Module, patch: tuple[int, ...] | None = None) -> pl.LightningModule:
    return task.module(network, Training(SGD(lr=0.1), Constant(), epochs=2, patch=patch))


def validate(module: pl.LightningModule, batches: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    return dict(trainer(folder).validate(module, loader(batches), verbose=False)[0])


def loader(batches: list[dict[str, Any]]) -> DataLoader:
    """Return a loader of these batches; Lightning takes a plain list for several loaders."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def volume(values: list[float]) -> Tensor:
    return torch.tensor(values).reshape(1, 1, -1, 1, 1)


def test_dice_of_whole_volumes_with_each_kind_of_empty_case(tmp_path: Path) -> None:
    batches = [
        {"case": ["a"], "image": volume([1, 1, -1, -1]), "label": volume([1, 0, 1, 0]).byte()},
        {"case": ["b"], "image": volume([1, -1, -1, -1]), "label": volume([0, 0, 0, 0]).byte()},
        {"case": ["c"], "image": volume([-1, -1, -1, -1]), "label": volume([0, 1, 1, 0]).byte()},
        {"case": ["d"], "image": volume([-1, -1, -1, -1]), "label": volume([0, 0, 0, 0]).byte()},
    ]
    task = Segment(classes=("background", "lesion"), loss=CrossEntropy())
    scores = validate(module_for(task, Thresholds()), batches, tmp_path)
    # Dice of a is 2 * 1 / (2 + 2); b is a false positive, c is missed; d has none.
    assert scores["val/dice"] == pytest.approx(0.5 / 3)
    assert (scores["val/both_empty"], scores["val/false_positives"], scores["val/missed"]) == (1, 1, 1)
    # The logits differ by 2: a voxel that is right costs log(1 + e^-2), one that is wrong 2 more.
    wrong = 2 + 1 + 2
    right = torch.nn.functional.softplus(torch.tensor(-2.0)).item()
    assert scores["val/loss"] == pytest.approx(right + 2 * wrong / 16)


def test_dice_is_absent_where_no_case_defines_it(tmp_path: Path) -> None:
    batch = {"case": ["a"], "image": volume([-1, -1]), "label": volume([0, 0]).byte()}
    scores = validate(module_for(Segment(classes=("background", "lesion")), Thresholds()), [batch], tmp_path)
    assert "val/dice" not in scores
    assert scores["val/both_empty"] == 1


def test_several_classes_are_scored_by_name(tmp_path: Path) -> None:
    logits = torch.eye(3)[torch.tensor([0, 1, 1, 2])].T.reshape(1, 3, 4, 1, 1)
    batch = {"case": ["a"], "image": volume([0, 0, 0, 0]), "label": volume([0, 1, 2, 2]).byte()}
    task = Segment(classes=("background", "liver", "tumour"))
    scores = validate(module_for(task, Given(logits)), [batch], tmp_path)
    assert scores["val/dice/liver"] == pytest.approx(2 / 3)
    assert scores["val/dice/tumour"] == pytest.approx(2 / 3)
    assert scores["val/dice"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_windows_cover_a_volume_of_any_size(blend) -> None:
    """A voxelwise network must give the same result in windows as on the whole image."""
    task = Segment(classes=("background", "lesion"), blend=blend, overlap=0.5)
    image = torch.randn(2, 1, 13, 7, 21, generator=torch.Generator().manual_seed(0))
    whole = module_for(task, Thresholds())(image)
    windows = module_for(task, Thresholds(), patch=(8, 8, 8))(image)
    assert torch.allclose(whole, windows, atol=1e-5)


def test_prediction_of_metadata_tensors_is_plain() -> None:
    module = module_for(Segment(classes=("background", "lesion")), Thresholds(), patch=(4, 4, 4))
    answer = module.predict_step({"case": ["a"], "image": MetaTensor(torch.randn(1, 1, 8, 4, 4))}, 0)
    assert type(answer["probabilities"]) is Tensor
    assert type(answer["label"]) is Tensor


def test_post_processing_changes_labels_scores_and_no_probability(tmp_path: Path) -> None:
    values = [1.0, 1, 1, -1, 1, -1]
    batch = {"case": ["a"], "image": volume(values), "label": volume([1, 1, 1, 0, 0, 0]).byte()}
    plain, largest = (
        module_for(Segment(classes=("background", "lesion"), largest=names), Thresholds())
        for names in ((), ("lesion",))
    )
    assert validate(plain, [batch], tmp_path)["val/dice"] == pytest.approx(6 / 7)
    assert validate(largest, [batch], tmp_path)["val/dice"] == 1
    answers = [module.predict_step(batch, 0) for module in (plain, largest)]
    assert torch.equal(answers[0]["probabilities"], answers[1]["probabilities"])
    assert answers[1]["label"].reshape(-1).tolist() == [1, 1, 1, 0, 0, 0]


def test_deep_supervision_halves_the_weight_level_by_level() -> None:
    task = Segment(classes=("background", "lesion"), loss=CrossEntropy())
    network = DynUNet(filters=(4, 8, 8, 8), strides=(1, 2, 2, 2), deep_supervision=2).build(
        1, 2, (16, 16, 16)
    )
    module = module_for(task, network, patch=(16, 16, 16))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 16, 16, 16, generator=generator)
    label = (image > 0).byte()
    levels = network.train()(image).unbind(1)
    losses = [nn.functional.cross_entropy(level, label[:, 0].long()) for level in levels]
    expected = (losses[0] + losses[1] / 2 + losses[2] / 4) / 1.75
    module.log = lambda *args, **settings: None  # type: ignore[method-assign]
    loss = module.training_step({"case": ["a"], "image": image, "label": label}, 0)
    assert torch.allclose(loss, expected)


def test_classification_is_scored_over_the_whole_set(tmp_path: Path) -> None:
    """The average AUROC of the batches would be 1, but that of the whole set is not."""
    logits = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.0, -1.0], [0.0, -2.0]])
    target = torch.tensor([1, 0, 1, 0])
    module = module_for(Classify(classes=("healthy", "ill")), nn.Identity())
    batches = [
        {"case": ["a", "b"], "image": logits[:2], "target": target[:2]},
        {"case": ["c", "d"], "image": logits[2:], "target": target[2:]},
    ]
    scores = validate(module, batches, tmp_path)
    assert scores["val/auroc"] == 0.75
    assert scores["val/accuracy"] == 0.5
    assert scores["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, target).item())


def test_auroc_of_one_class_is_absent(tmp_path: Path) -> None:
    batch = {"case": ["a", "b"], "image": torch.randn(2, 2), "target": torch.tensor([1, 1])}
    scores = validate(module_for(Classify(classes=("healthy", "ill")), nn.Identity()), [batch], tmp_path)
    assert "val/auroc" not in scores
    assert {"val/loss", "val/accuracy"} == set(scores)


def test_one_output_gives_two_probabilities() -> None:
    module = module_for(Tabular(classes=("healthy", "ill"), loss=BinaryCrossEntropy()), nn.Identity())
    z = torch.tensor([[0.0], [2.0], [-50.0]])
    answer = module.predict_step({"case": ["a", "b", "c"], "features": z}, 0)["probabilities"]
    assert torch.allclose(answer[:, 1], z.sigmoid()[:, 0])
    assert torch.allclose(answer.sum(dim=1), torch.ones(3))
    assert answer[2, 1] > 0


def test_logistic_regression_is_flambys(tmp_path: Path) -> None:
    """Training equals FLamby's plain loop: linear layer, sigmoid, BCELoss, SGD, batches of 4."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 13, generator=generator)
    target = torch.randint(0, 2, (20,), generator=generator)
    torch.manual_seed(42)
    linear = nn.Linear(13, 1)
    optimiser = torch.optim.SGD(linear.parameters(), lr=0.1)
    for _ in range(2):
        for start in range(0, 20, 4):
            optimiser.zero_grad()
            p = torch.sigmoid(linear(features[start : start + 4]))
            nn.functional.binary_cross_entropy(p, target[start : start + 4, None].float()).backward()
            optimiser.step()
    torch.manual_seed(42)
    task = Tabular(classes=("healthy", "ill"), loss=BinaryCrossEntropy())
    module = module_for(task, FullyConnected().build(13, task.outputs))
    batches = [
        {"case": ["?"] * 4, "features": features[start : start + 4], "target": target[start : start + 4]}
        for start in range(0, 20, 4)
    ]
    trainer(tmp_path, enable_checkpointing=False).fit(module, loader(batches))
    # Not equal to the last bit: FLamby takes the logarithm of a rounded sigmoid, we the logits themselves.
    assert torch.allclose(module.network.output.weight, linear.weight, atol=1e-6)
    assert torch.allclose(module.network.output.bias, linear.bias, atol=1e-6)


def test_survival_is_scored_over_the_whole_set(tmp_path: Path) -> None:
    risk = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
    batches = [
        {"case": ["a", "b"], "features": risk[:2], "target": torch.tensor([[1.0, 1], [2, 1]])},
        {"case": ["c", "d"], "features": risk[2:], "target": torch.tensor([[3.0, 1], [4, 0]])},
    ]
    scores = validate(module_for(Survival(), nn.Identity()), batches, tmp_path)
    # Six pairs, of which b before c is the wrong way round.
    assert scores["val/c_index"] == pytest.approx(5 / 6)
    e = risk.double().exp()[:, 0]
    hand = (e.sum().log() - 3 + e[1:].sum().log() - 1 + e[2:].sum().log() - 2) / 3
    assert scores["val/loss"] == pytest.approx(float(hand))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segment(classes=("background",)), "classes has 1 names, at least 2"),
        (lambda: Segment(classes=("background", "a", "a")), "'a' is empty or a duplicate"),
        (lambda: Segment(classes=("background", "a"), largest=("b",)), "largest: 'b' is not one of .* a"),
        (
            lambda: Segment(classes=("background", "a"), loss=BinaryCrossEntropy()),
            "loss 'binary_cross_entropy' is for",
        ),
        (
            lambda: Classify(classes=("a", "b", "c"), loss=BinaryCrossEntropy()),
            "has 3 classes, this loss takes 2; take 'cross_entropy'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message) -> None:
    with pytest.raises(StudyError, match=message):
        make()


def test_frozen_parameters_are_not_given_to_the_optimiser() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].requires_grad_(False)
    settings: Any = module_for(Survival(), network).configure_optimizers()
    assert [tuple(p.shape) for p in settings["optimizer"].param_groups[0]["params"]] == [(1, 2), (1,)]


class Spread(nn.Module):
    """A network that returns the spread of a window's values, as an instance norm sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        spread = self.weight * image.std(dim=(2, 3, 4), keepdim=True).expand_as(image)
        return torch.cat([spread, -spread], dim=1)


def test_a_volume_smaller_than_the_patch_is_padded_as_in_training_with_its_darkest_value():
    image = torch.arange(64.0).reshape(1, 1, 4, 4, 4) - 100
    padded = torch.full((1, 1, 6, 6, 6), -100.0)
    padded[..., 1:5, 1:5, 1:5] = image
    result = module_for(Segment(classes=("background", "lesion")), Spread(), (6, 6, 6))(image)
    assert result.shape == (1, 2, 4, 4, 4)
    assert float(result[0, 0, 0, 0, 0]) == pytest.approx(float(padded.std()), rel=1e-6)


def test_a_2d_network_segments_volumes_slice_by_slice() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 3, 3, padding=1)
    task = Segment(classes=("background", "a", "b"), windows=2, overlap=0.0, blend="constant")
    training = Training(SGD(lr=0.1), Constant(), epochs=2, spatial_dims=2)
    image = torch.randn(2, 1, 8, 12, 5)
    result = task.module(network, training)(image)
    assert result.shape == (2, 3, 8, 12, 5)
    for case in range(2):
        for z in range(5):
            expected = network(image[case : case + 1, ..., z])[0]
            assert torch.allclose(result[case, ..., z], expected, atol=1e-6)
    # In windows of a patch, too; a pointwise network does not see their borders.
    pointwise = nn.Conv2d(1, 3, 1)
    windowed = task.module(pointwise, replace(training, patch=(4, 4)))(image)
    slices = torch.stack([pointwise(image[..., z]) for z in range(5)], dim=-1)
    assert torch.allclose(windowed, slices, atol=1e-6)


def test_a_slice_smaller_than_the_patch_is_padded_with_the_darkest_value_of_its_volume() -> None:
    class Smallest(nn.Module):
        """Gives the smallest value of its whole input everywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor) -> Tensor:
            low = image.amin((1, 2, 3), keepdim=True).expand_as(image)
            return torch.cat([self.weight * low, low], dim=1)

    image = torch.ones(1, 1, 4, 4, 2)
    image[..., 1] = -7.0
    task = Segment(classes=("background", "a"))
    training = Training(SGD(lr=0.1), Constant(), epochs=1, patch=(8, 8), spatial_dims=2)
    result = task.module(Smallest(), training)(image)
    assert result[0, 0, 0, 0].tolist() == pytest.approx([-7.0, -7.0])


def test_a_2d_network_trains_and_validates(tmp_path: Path) -> None:
    task = Segment(classes=("background", "lesion"))
    module = task.module(nn.Conv2d(1, 2, 1), Training(SGD(lr=0.1), Constant(), epochs=1, spatial_dims=2))
    label = torch.zeros(1, 1, 4, 4, 3, dtype=torch.int64)
    label[0, 0, 1, 1, 2] = 1
    with torch.no_grad():  # bright voxels are lesions
        module.network.weight.copy_(torch.tensor([-1.0, 1.0])[:, None, None, None])
        module.network.bias.zero_()
    image = label * 2.0 - 1.0
    scores = validate(module, [{"image": image, "label": label, "case": ["a"]}], tmp_path)
    assert scores["val/dice"] == 1.0
    loss = module.loss({"image": image[..., 2], "label": label[..., 2]})
    assert torch.isfinite(loss)


class Sided(nn.Module):
    """A network whose logit is the image times a ramp along each axis, so that sides matter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        ramp = sum(
            (axis + 1) * torch.linspace(0, 1, side).reshape([side if at == axis else 1 for at in range(3)])
            for axis, side in enumerate(image.shape[2:])
        )
        return torch.cat([-self.weight * image * ramp, self.weight * image * ramp], dim=1)


def test_mirroring_averages_the_logits_over_every_choice_of_the_axes() -> None:
    task = Segment(classes=("background", "lesion"), mirror=("x", "z"))
    training = Training(SGD(), Constant(), epochs=1, axes=("y", "z", "x"))  # x is the last axis, z the second
    image = torch.randn(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    answer = task.module(Sided(), training).predict_step({"case": ["a"], "image": image}, 0)
    # Mirrored and back, a ramp along an axis runs the other way: the mean of both is 1/2 everywhere.
    ramp = torch.linspace(0, 1, 4).reshape(4, 1, 1) + 2 * 0.5 + 3 * 0.5
    expected = torch.sigmoid(2 * image[:, 0] * ramp)
    torch.testing.assert_close(answer["probabilities"][:, 1], expected, atol=1e-6, rtol=0)
    plain = Segment(classes=task.classes).module(Sided(), training)
    batch = {"case": ["a"], "image": image}
    assert torch.equal(plain.predict_step(batch, 0)["probabilities"], plain(image).softmax(1))
    with pytest.raises(StudyError, match="mirror names an axis twice"):
        Segment(classes=task.classes, mirror=("x", "x"))


def test_of_equally_likely_classes_a_voxel_gets_the_first():
    # One row of voxels, by class: the classes' probabilities of each voxel stand below one another.
    likely = torch.tensor([[0.5, 0.2, 0.4], [0.5, 0.4, 0.2], [0.0, 0.4, 0.4]]).reshape(1, 3, 3, 1, 1)
    labels = Segment(classes=("background", "liver", "lesion")).labels(likely)
    assert labels.dtype == torch.uint8
    assert labels.shape == (1, 1, 3, 1, 1)
    assert labels.flatten().tolist() == [0, 1, 0]
