"""The module of `task: {kind: pretrain}`: its loss, its scores, and the start that its network is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medfed.evaluation.metrics import CasePrediction, metric_of
from medfed.evaluation.metrics.reconstruction import FLAT, ReconstructionError
from medfed.models.networks.dynunet import DynUNet
from medfed.models.networks.segresnet import SegResNet
from medfed.models.networks.unet import UNet
from medfed.models.optimisers.sgd import SGD
from medfed.models.pretrained.load import load_start
from medfed.models.pretrained.settings import Start
from medfed.models.schedules.constant import Constant
from medfed.models.tasks import Training
from medfed.models.tasks._masking import draw_masks
from medfed.models.tasks.pretrain import Pretrain
from medfed.testing._tasks import trainer

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="pytorch_lightning")


class Kept(nn.Module):
    """A network that returns a share of what it sees, and remembers that."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return self.share * image


class Levels(nn.Module):
    """Deep supervision: the input, and twice the input, as two levels."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image, 2 * image], dim=1)


def module_for(network: nn.Module, task: Pretrain | None = None, **settings: Any) -> Any:
    task = task or Pretrain(block=2, masked=0.5)
    return task.module(network, Training(SGD(lr=0.1), Constant(), epochs=2, **settings))


def validate(module: Any, images: list[Tensor], folder: Path) -> dict[str, float]:
    batches = [{"case": [f"c{n}"], "image": image[None]} for n, image in enumerate(images)]
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    return dict(trainer(folder).validate(module, loader, verbose=False)[0])


@pytest.mark.parametrize(("error", "power"), [("l1", 1), ("l2", 2)])
def test_the_loss_is_the_error_of_hidden_voxels_of_blocks_drawn_anew(error: Any, power: int) -> None:
    network = Kept()
    module = module_for(network, Pretrain(block=2, masked=0.5, error=error))
    image = torch.randn(3, 2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    losses = [float(module.loss({"image": image})) for _ in range(2)]
    torch.manual_seed(5)
    for loss, seen in zip(losses, network.seen, strict=True):
        masks = draw_masks(3, (4, 4, 6), 2, 0.5)
        expected = []
        for number in range(3):
            hidden = masks[number, 0]
            parts = []
            for channel in range(2):
                voxels = image[number, channel]
                fill = voxels[~hidden].mean()
                assert torch.allclose(seen[number, channel][hidden], fill)
                assert torch.equal(seen[number, channel][~hidden], voxels[~hidden])
                parts.append(((voxels[hidden] - fill).abs() ** power).mean())
            expected.append(sum(parts) / 2)
        assert loss == pytest.approx(float(sum(expected) / 3), rel=1e-5)
    assert losses[0] != losses[1]


def test_each_level_of_deep_supervision_counts_half_of_the_one_before() -> None:
    image = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for factor in (1.0, 2.0):
        torch.manual_seed(2)
        losses.append(float(module_for(Kept(factor)).loss({"image": image})))
    torch.manual_seed(2)
    both = float(module_for(Levels()).loss({"image": image}))
    assert both == pytest.approx((losses[0] + losses[1] / 2) / 1.5)


def test_a_network_that_guesses_the_visible_mean_scores_one_and_a_flat_image_nothing(tmp_path: Path) -> None:
    images = [torch.randn(1, 4, 6, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    # Kept returns at a hidden voxel what stands there: the mean of the visible ones.
    scores = validate(module_for(Kept()), [*images, torch.full((1, 4, 6, 4), 7.3)], tmp_path)
    assert scores["val/reconstruction_error"] == pytest.approx(1.0)
    mask = draw_masks(1, (4, 6, 4), 2, 0.5, torch.Generator().manual_seed(0))[0]
    squares = [float((image[mask] - image[~mask].mean()).square().mean()) for image in images]
    assert scores["val/loss"] == pytest.approx(sum(squares) / 4, rel=1e-5)


def test_a_flat_image_alone_has_no_score(tmp_path: Path) -> None:
    assert "val/reconstruction_error" not in validate(
        module_for(Kept()), [torch.full((1, 4, 4, 4), 3.7)], tmp_path
    )


def test_the_score_is_relative_to_the_guess() -> None:
    image = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    mask = draw_masks(1, (4, 4, 4), 2, 0.5, torch.Generator().manual_seed(0))[0]
    mean, hidden = image[0][~mask].mean(), image[0][mask]
    expected = (hidden - mean / 2).abs().mean() / (hidden - mean).abs().mean()
    answer = module_for(Kept(0.5)).predict_step({"case": ["a"], "image": image}, 0)
    assert answer["case"] == ["a"]
    assert float(answer["reconstruction_error"]) == pytest.approx(float(expected), rel=1e-5)


def test_in_2d_each_slice_of_a_volume_has_blocks_of_its_own() -> None:
    network = Kept()
    module = module_for(network, spatial_dims=2, patch=(4, 4))
    image = torch.randn(1, 1, 4, 4, 6, generator=torch.Generator().manual_seed(4))
    module.predict_step({"case": ["a"], "image": image}, 0)
    slices = torch.cat(network.seen)[:, 0]  # (Z, X, Y)
    hidden = slices != image[0, 0].permute(2, 0, 1)
    assert (hidden[:, ::2, ::2].flatten(1).sum(1) == 2).all()
    assert any(not torch.equal(hidden[0], other) for other in hidden[1:])
    plane = module.loss({"image": image[..., 0]})
    assert torch.isfinite(plane)


@pytest.mark.parametrize(
    "network",
    [
        UNet(channels=(4, 8, 8)),
        SegResNet(filters=8),
        DynUNet(kernels=((3, 3, 3),) * 3, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), filters=(4, 8, 8)),
    ],
    ids=["unet", "segresnet", "dynunet"],
)
def test_a_segmentation_starts_from_the_pretrained_network_but_for_its_head(
    network: Any, tmp_path: Path
) -> None:
    size, task = (16, 16, 16), Pretrain(block=8)
    pretrained = network.build(2, task.outputs_of(2), size)
    torch.save({"state_dict": pretrained.state_dict()}, tmp_path / "a.pt")
    later = network.build(2, 3, size)
    loaded = load_start(later, Start(path=str(tmp_path / "a.pt"), anew=("head",)), network.head)
    assert all(network.head in name for name in loaded.anew)
    assert loaded.anew
    own = later.state_dict()
    for name, tensor in pretrained.state_dict().items():
        if name not in loaded.anew and tensor.is_floating_point():
            assert torch.equal(own[name], tensor), name


def test_its_metric_is_the_modules_number_and_lower_is_better() -> None:
    family = ReconstructionError()
    case = CasePrediction({"reconstruction_error": torch.tensor(0.25)}, {})
    assert family.measure(case)["reconstruction_error"] == (0.25, None)
    flat = CasePrediction({"reconstruction_error": torch.tensor(torch.nan)}, {})
    assert family.measure(flat)["reconstruction_error"] == (None, FLAT)
    assert metric_of(Pretrain().main_score.removeprefix("val/")).better == "lower"
