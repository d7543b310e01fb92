"""The LightningModule that reconstructs hidden blocks of images."""

from __future__ import annotations

from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor, nn

from medfed.models.tasks._masking import absolute, draw_masks, hidden_errors, hide, squared, visible_mean
from medfed.models.tasks._module import TaskModule, over_levels, plain
from medfed.models.tasks._training import Training
from medfed.models.tasks._whole_images import Windows

# Equal masks in each round, so that the scores of rounds can be compared.
_MASK_SEED = 0
# An image whose hidden voxels differ from the visible mean by less than this share of its largest value has
# no contrast there: the mean itself is rounded in float32.
_NO_CONTRAST = 1e-5


class ReconstructionTask(Protocol):
    """The settings of a pretraining that its module uses; `pretrain.Pretrain` documents them."""

    @property
    def masked(self) -> float: ...
    @property
    def block(self) -> int: ...
    @property
    def error(self) -> Literal["l1", "l2"]: ...


@final
class Reconstruction(TaskModule):
    """Trains on patches with hidden blocks; validates whole images, in windows of the patch's size.

    Whole images of one size have the same blocks hidden, at every hospital and in every round. It logs
    `train/loss`, `val/loss` (mean over cases of the loss of the whole image) and
    `val/reconstruction_error`: the mean over cases of the mean absolute error, divided by that of guessing
    the mean of the visible voxels. An image without any contrast has none.
    """

    def __init__(self, task: ReconstructionTask, network: nn.Module, training: Training) -> None:
        super().__init__(network, absolute if task.error == "l1" else squared, training)
        self.task = task
        self.windows = Windows(training.patch, training.spatial_dims)

    def forward(self, image: Tensor) -> Tensor:
        """Return the reconstruction (B, C, X, Y, Z) of whole images with hidden blocks."""
        return self.windows.outputs(self.network, plain(image))

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return self.log_train_loss(self.loss(batch), len(batch["image"]))

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a training batch, with blocks drawn anew; nothing is logged."""
        image = plain(batch["image"])
        masks = draw_masks(len(image), image.shape[2:], self.task.block, self.task.masked).to(image.device)
        outputs = self.network(hide(image, masks)).float()
        return over_levels(
            outputs, image.ndim, lambda one: hidden_errors(one, image, masks, self.criterion).mean()
        )

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        loss, error = self._errors(plain(batch["image"]))
        self.collect(torch.stack([loss, error], dim=1), list(batch["case"]))

    def log_scores(self, rows: Tensor) -> None:
        self.log("val/loss", float(rows[:, 0].mean()))
        known = rows[:, 1][torch.isfinite(rows[:, 1])]
        if len(known):
            self.log("val/reconstruction_error", float(known.mean()), prog_bar=True)

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        """Return each image's `reconstruction_error` (B,), NaN of an image without any contrast."""
        _, error = self._errors(plain(batch["image"]))
        return {"case": list(batch["case"]), "reconstruction_error": error}

    def _errors(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the error relative to that of the visible mean, of whole images, (B,) each."""
        mask = self._whole_mask(image).expand(len(image), -1, *image.shape[2:])
        output = self(hide(image, mask)).float()
        error = hidden_errors(output, image, mask, absolute)
        guess = hidden_errors(visible_mean(image, mask).expand_as(image), image, mask, absolute)
        loss = hidden_errors(output, image, mask, self.criterion)
        least = _NO_CONTRAST * image.abs().flatten(1).amax(dim=1)
        return loss, torch.where(guess > least, error / guess, torch.nan)

    def _whole_mask(self, image: Tensor) -> Tensor:
        """Return the hidden voxels of images of this size, (1, 1, X, Y, Z); in 2D, of each slice."""
        generator = torch.Generator().manual_seed(_MASK_SEED)
        block, share, sides = self.task.block, self.task.masked, image.shape[2:]
        if self.windows.spatial_dims == 3 or len(sides) == 2:
            return draw_masks(1, sides, block, share, generator).to(image.device)
        slices = draw_masks(sides[2], sides[:2], block, share, generator)
        return slices.permute(1, 2, 3, 0)[None].to(image.device)
