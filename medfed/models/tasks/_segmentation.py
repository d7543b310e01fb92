"""The LightningModule that segments volumes and planes."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor, nn

from medfed.models.losses import Loss
from medfed.models.tasks._module import TaskModule, class_losses, over_levels, plain
from medfed.models.tasks._partial_labels import marginal, merged_logits, merged_target
from medfed.models.tasks._scores import dice_scores
from medfed.models.tasks._task import VoxelTask
from medfed.models.tasks._training import Training
from medfed.models.tasks._whole_images import Windows


class SegmentationTask(VoxelTask, Protocol):
    """The settings of a segmentation that its module uses; `segment.Segment` documents them."""

    @property
    def loss(self) -> Loss: ...
    @property
    def overlap(self) -> float: ...
    @property
    def blend(self) -> Literal["gaussian", "constant"]: ...
    @property
    def windows(self) -> int: ...
    @property
    def mirror(self) -> tuple[str, ...]: ...


@final
class Segmentation(TaskModule):
    """Trains on patches; validates and predicts whole volumes, in windows of the patch's size.

    A 2D network trains on patches of planes (B, C, X, Y), and predicts volumes (B, C, X, Y, Z) slice by
    slice; scores are of the whole volume.

    `labelled` are the numbers of the classes that the hospital labelled, all foreground classes if None;
    scores are over these, and the loss counts all others as background.

    What it predicts is the mean of the logits over the mirrored images of `task.mirror`, each mirrored back;
    validation scores are of the image as it is, which costs a part of that.

    It logs `train/loss`, `val/loss` (mean over cases of the loss of the whole volume), `val/dice`,
    `val/dice/<class>` if there are several, and the counts `val/both_empty`, `val/false_positives` and
    `val/missed` (see `DiceScores`). An undefined Dice is not logged.
    """

    def __init__(
        self,
        task: SegmentationTask,
        network: nn.Module,
        training: Training,
        labelled: tuple[int, ...] | None = None,
    ) -> None:
        labelled = tuple(range(1, len(task.classes))) if labelled is None else labelled
        super().__init__(network, marginal(task.loss, len(task.classes), labelled), training)
        self.task = task
        self.labelled = labelled
        self.windows = Windows(training.patch, training.spatial_dims, task.overlap, task.blend, task.windows)
        self._flips = mirrorings([training.axes.index(axis) for axis in task.mirror])

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, K, X, Y, Z) of whole images."""
        return self.windows.outputs(self.network, plain(image))

    def mirrored_logits(self, image: Tensor) -> Tensor:
        """Return the mean of the logits (B, K, X, Y, Z) over an image and its mirrored images."""
        image = plain(image)
        total: Tensor | None = None
        for axes in self._flips:
            logits: Tensor = self(image.flip(axes)).float().flip(axes)
            total = logits if total is None else total.add_(logits)
        assert total is not None
        return total if len(self._flips) == 1 else total.div_(len(self._flips))

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return self.log_train_loss(self.loss(batch), len(batch["image"]))

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a training batch; nothing is logged."""
        return self._loss(self.network(plain(batch["image"])).float(), plain(batch["label"]))

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        return over_levels(logits, label.ndim, lambda one: self.criterion(one, label))

    def class_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return each class's sum of cross entropy and number of voxels, as (2,) float64."""
        logits = self.network(plain(batch["image"])).float()
        logits = logits[:, 0] if logits.ndim > batch["label"].ndim else logits
        merged = merged_logits(logits, self.labelled)
        target = merged_target(plain(batch["label"]), self.labelled)[:, 0]
        names = [self.task.classes[number] for number in (0, *self.labelled)]
        return class_losses(merged, target, names)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        label = plain(batch["label"])
        logits = self(batch["image"]).float()
        labels = self.task.labels(logits)
        for case, one, predicted, reference in zip(batch["case"], logits, labels, label, strict=True):
            loss = self.criterion(one[None], reference[None])
            counts = overlap_counts(predicted, reference, len(self.task.classes))
            counts = counts[[number - 1 for number in self.labelled]]
            row = [float(loss), *counts.flatten().tolist()]
            self.collect(torch.tensor([row], dtype=torch.float64), [case])

    def log_scores(self, rows: Tensor) -> None:
        losses, counts = rows.numpy()[:, 0], rows.numpy()[:, 1:]
        scores = dice_scores(counts.reshape(len(rows), -1, 3))
        self.log("val/loss", float(losses.mean()))
        if scores.mean is not None:
            self.log("val/dice", scores.mean, prog_bar=True)
        if len(self.task.classes) > 2:
            for number, value in zip(self.labelled, scores.by_class, strict=True):
                if value is not None:
                    self.log(f"val/dice/{self.task.classes[number]}", value)
        for name in ("both_empty", "false_positives", "missed"):
            self.log(f"val/{name}", float(getattr(scores, name)))

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        probabilities = self.mirrored_logits(batch["image"]).softmax(dim=1)
        return {
            "case": list(batch["case"]),
            "probabilities": probabilities,
            "label": self.task.labels(probabilities),
        }


def mirrorings(axes: list[int]) -> tuple[tuple[int, ...], ...]:
    """Return every choice of these axes of an image, as axes of (B, C, X, Y, Z), the empty one first.

    >>> mirrorings([0, 2])
    ((), (2,), (4,), (2, 4))
    """
    chosen = (one for size in range(len(axes) + 1) for one in combinations(sorted(axes), size))
    return tuple(tuple(axis + 2 for axis in one) for one in chosen)


def overlap_counts(predicted: Tensor, reference: Tensor, classes: int) -> Tensor:
    """Return each foreground class's voxels in both, in prediction, in reference: (classes - 1, 3)."""
    # Three counts and no table of all pairs, which would take 34 GB for 65,536 classes.
    one, other = predicted.reshape(-1).long(), reference.reshape(-1).long()
    counts = [torch.bincount(numbers, minlength=classes) for numbers in (one[one == other], one, other)]
    return torch.stack(counts, dim=1)[1:]
