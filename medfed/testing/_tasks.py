"""The contract of a task: it trains under a Trainer, scores do not depend on batches, no tensor is added."""

from __future__ import annotations

import math
from math import isclose
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import msgspec
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from medfed.data.batch_needs import IMAGE_NEEDS, PATCH_NEEDS
from medfed.errors import StudyError
from medfed.models.networks.fully_connected import FullyConnected
from medfed.models.networks.resnet import ResNet
from medfed.models.networks.unet import UNet
from medfed.models.optimisers.sgd import SGD
from medfed.models.schedules.cosine import Cosine
from medfed.models.tasks import Needs, Task, Training
from medfed.registry import kinds
from medfed.testing._contract import OF_EVERY_KIND, Contract, NotApplicable, raises

check_task: Contract[Task] = Contract("task", OF_EVERY_KIND)

PATCH = (16, 8, 8)
VOLUME = (20, 8, 9)
FEATURES = 5


Loader = DataLoader[dict[str, Any]]


class Cases(Dataset[dict[str, Any]]):
    """Random cases of what a task needs; a case is the same whenever it is asked for."""

    def __init__(self, needs: str, count: int, size: tuple[int, ...]) -> None:
        self.needs, self.count, self.size = needs, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        case: dict[str, Any] = {"case": f"case-{index}"}
        if self.needs in IMAGE_NEEDS:
            case["image"] = torch.randn(1, *self.size, generator=generator)
        else:
            case["features"] = torch.randn(FEATURES, generator=generator)
        if self.needs == "segment":
            return case | {"label": (case["image"] > 0.5).to(torch.uint8)}
        if self.needs == "image":
            return case
        if self.needs == "survival":
            time = float(torch.rand((), generator=generator))
            return case | {"target": torch.tensor([time, index % 3 != 0])}
        if self.needs == "multilabel":
            second = 1.0 - index % 2 if index else math.nan
            return case | {"target": torch.tensor([float(index % 2), second])}
        return case | {"target": index % 2}


def network_for(task: Task) -> torch.nn.Module:
    torch.manual_seed(0)
    if task.needs in PATCH_NEEDS:
        return UNet(channels=(4, 8)).build(1, task.outputs, PATCH)
    if task.needs in ("classify", "multilabel"):
        return ResNet(width=4, norm="group").build(1, task.outputs, VOLUME)
    return FullyConnected(hidden=(4,)).build(FEATURES, task.outputs)


class Pointwise(torch.nn.Module):
    """One linear layer over the channels of each voxel (B, C, ...), averaged over the image where asked."""

    def __init__(self, inputs: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(inputs, outputs)
        self.pooled = pooled

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(inputs.movedim(1, -1)).movedim(-1, 1)
        return outputs.flatten(2).mean(dim=2) if self.pooled else outputs


def module_for(task: Task) -> pl.LightningModule:
    return task.module(network_for(task), Training(SGD(lr=0.01), Cosine(), epochs=2, patch=PATCH))


def trainer(folder: Path, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def loaders(task: Task) -> tuple[Loader, Loader]:
    training = Cases(task.needs, 6, PATCH if task.needs in PATCH_NEEDS else VOLUME)
    return DataLoader(training, batch_size=3), DataLoader(Cases(task.needs, 5, VOLUME), batch_size=2)


@check_task.check
def it_says_what_it_needs(task: Task) -> None:
    assert task.needs in get_args(Needs)
    assert task.outputs >= 1


@check_task.check
def a_loss_for_another_task_is_refused(task: Task) -> None:
    if "loss" not in task.__struct_fields__:
        raise NotApplicable("it takes no loss from the study")
    for name, record in kinds("losses").items():
        if task.needs not in record.serves:  # type: ignore[attr-defined]
            with raises(StudyError, rf"loss '{name}' is for .*; take one of"):
                msgspec.structs.replace(task, loss=record())


@check_task.check
def it_trains_and_its_checkpoint_holds_the_network_and_plain_numbers(task: Task) -> None:
    with TemporaryDirectory() as folder:
        module = module_for(task)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        ours = trainer(Path(folder))
        ours.fit(module, *loaders(task))
        logged = ours.callback_metrics
        assert {"train/loss", "val/loss"} <= set(logged)
        # A score that is not declared is refused at the site (federation/egress.py), which would stop every
        # study of this task.
        assert {name for name in logged if name.startswith("val")} <= set(task.scores)
        assert all(torch.isfinite(value) for value in logged.values())
        assert all(name.startswith("network.") for name in before)
        assert any(not torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())
        checkpoints = ours.checkpoint_callback
        assert isinstance(checkpoints, pl.callbacks.ModelCheckpoint)
        saved = torch.load(checkpoints.best_model_path, weights_only=True)
        assert saved["state_dict"].keys() == before.keys()
        assert "hyper_parameters" not in saved


@check_task.check
def scores_do_not_depend_on_how_cases_are_batched(task: Task) -> None:
    with TemporaryDirectory() as folder:
        cases = Cases(task.needs, 5, VOLUME)
        module = module_for(task)
        one, five = (
            trainer(Path(folder)).validate(module, DataLoader(cases, batch_size=size), verbose=False)[0]
            for size in (1, 5)
        )
        assert one.keys() == five.keys()
        for score, value in one.items():
            assert isclose(value, five[score], rel_tol=1e-5), score


@check_task.check
def a_prediction_names_its_case_and_is_finite(task: Task) -> None:
    with TemporaryDirectory() as folder:
        batches: Any = trainer(Path(folder)).predict(module_for(task), loaders(task)[1])
        assert batches is not None
        assert [case for batch in batches for case in batch["case"]] == [
            f"case-{index}" for index in range(5)
        ]
        for batch in batches:
            if task.predicts == "other":
                _finite_for_each_case(batch)
                continue
            answer = batch["risk"] if task.needs == "survival" else batch["probabilities"]
            assert len(answer) == len(batch["case"])
            assert torch.isfinite(answer).all()
            if task.needs == "multilabel":
                assert ((answer >= 0) & (answer <= 1)).all()
            elif task.needs != "survival":
                assert torch.allclose(answer.sum(dim=1), torch.ones(()))
            if task.needs == "segment":
                assert answer.shape[2:] == VOLUME
                assert batch["label"].shape == (len(answer), 1, *VOLUME)


def _finite_for_each_case(batch: dict[str, Any]) -> None:
    """Check what a task with metrics of its own predicts: as many values as cases, none of them NaN."""
    values = {name: value for name, value in batch.items() if name != "case"}
    assert values, "expected what is predicted beside 'case'"
    for name, value in values.items():
        assert len(value) == len(batch["case"]), f"'{name}' has not one value for each case"
        assert not isinstance(value, torch.Tensor) or torch.isfinite(value).all(), f"'{name}' is not finite"


@check_task.check
def it_trains_in_bfloat16(task: Task) -> None:
    # Without convolutions: see medfed.federation.half_precision.
    inputs = FEATURES if task.needs in ("table", "survival") else 1
    network = Pointwise(inputs, task.outputs, pooled=task.needs in ("classify", "multilabel"))
    module = task.module(network, Training(SGD(lr=0.01), Cosine(), epochs=2, patch=PATCH))
    with TemporaryDirectory() as folder:
        ours = trainer(Path(folder), precision="bf16-mixed")
        ours.fit(module, *loaders(task))
        assert all(torch.isfinite(value) for value in ours.callback_metrics.values())


@check_task.check
def a_run_without_epochs_is_refused(task: Task) -> None:
    with TemporaryDirectory() as folder:
        module = task.module(network_for(task), Training(SGD(), Cosine(), epochs=0, patch=PATCH))
        with raises(StudyError, r"train\.epochs: 0; a run needs at least 1"):
            trainer(Path(folder)).fit(module, *loaders(task))
