"""Segmentation: the class of each voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, field

from medfed.errors import StudyError
from medfed.models.losses.dicece import DiceCE
from medfed.models.tasks._task import AnyLoss, Task, check_classes, check_loss
from medfed.models.tasks._training import Training

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import Tensor, nn


Milliliters = Annotated[float, Meta(gt=0)]


class Segment(Task, tag="segment", frozen=True):
    """Segmentation of each voxel into one of the classes, the background first.

    Volumes larger than the patch are predicted in windows that overlap by the share `overlap` and are
    blended with weights that decrease towards a window's edge (`blend: gaussian`) or are equal
    (`constant`); `windows` of them go through the network at once. `largest` names the classes of which
    only the largest connected component is kept, `minimum_voxels` removes smaller components of any
    class, on the grid on which labels are computed; both change labels, including those of validation
    scores, and never probabilities.

    `postprocess` removes components of the final model's predictions, on each image's own grid: a rule for
    each structure, such as {liver: largest, lesion: 0.1}, where a number is the volume in ml below which a
    component is removed. `auto` chooses among these by the Dice of validation patients pooled over hospitals,
    once training has ended; scores during training and guaranteed thresholds are without it.

    `mirror` predicts each image also mirrored along every choice of these axes (x is left-right, y
    front-back, z up-down) and takes the mean of the logits, which costs twice the time per axis; training
    must mirror along the same axes (`data.augment.flip`), else the network has not learned it. Validation
    scores during training are without it.

    `labelled` lists the classes of each hospital that labelled only some of the foreground classes:
    everything else counts as background there, in training and in scores. A hospital that is not
    listed labelled all classes.
    """

    needs = "segment"

    classes: tuple[str, ...]
    loss: AnyLoss = DiceCE()
    overlap: Annotated[float, Meta(ge=0, lt=1)] = 0.25
    blend: Literal["gaussian", "constant"] = "gaussian"
    windows: Annotated[int, Meta(ge=1)] = 4
    largest: tuple[str, ...] = ()
    minimum_voxels: Annotated[int, Meta(ge=0)] = 0
    postprocess: Literal["none", "auto"] | dict[str, Literal["largest"] | Milliliters] = "none"
    mirror: tuple[Literal["x", "y", "z"], ...] = ()
    labelled: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self, self.classes)
        check_loss(self, self.loss)
        self._check_foreground("largest", self.largest)
        if not isinstance(self.postprocess, str):
            self._check_foreground("postprocess", tuple(self.postprocess))
        if self.postprocess != "none" and (self.largest or self.minimum_voxels):
            raise StudyError(
                "task 'segment': postprocess removes components, and so do largest and minimum_voxels; leave "
                "out postprocess, or the two others"
            )
        if len(set(self.mirror)) < len(self.mirror):
            raise StudyError("task 'segment': mirror names an axis twice; name each only once")
        for site, names in self.labelled.items():
            self._check_foreground(f"labelled: {site}", names)
            if not names or len(set(names)) < len(names):
                raise StudyError(
                    f"task 'segment': labelled: {site}: names {len(names)} classes, {len(set(names))} of "
                    f"them distinct; name at least one class, and each only once"
                )

    def _check_foreground(self, key: str, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.classes[1:]:
                raise StudyError(
                    f"task 'segment': {key}: '{name}' is not one of the foreground classes "
                    f"{', '.join(self.classes[1:])}"
                )

    def labelled_at(self, site: str) -> tuple[int, ...]:
        """Return the numbers of the foreground classes that a hospital labelled."""
        names = self.labelled.get(site, self.classes[1:])
        return tuple(sorted(self.classes.index(name) for name in names))

    @property
    def outputs(self) -> int:
        return self.loss.outputs(len(self.classes))

    @property
    def scores(self) -> tuple[str, ...]:
        counts = ("val/both_empty", "val/false_positives", "val/missed")
        return ("val/loss", "val/dice", *counts, *(f"val/dice/{name}" for name in self.classes[1:]))

    def labels(self, probabilities: Tensor) -> Tensor:
        """Return class numbers (B, 1, X, Y, Z) of probabilities (B, K, X, Y, Z), after post-processing."""
        import torch

        from medfed.models.tasks._connected_components import remove_components

        # `argmax` gives the same, but on a CPU takes 12 times as long for two classes.
        labels = probabilities.max(dim=1, keepdim=True).indices
        # One byte per voxel instead of argmax's eight, if the classes fit.
        labels = labels.to(torch.uint8 if len(self.classes) <= 256 else torch.int32)
        if not self.largest and not self.minimum_voxels:
            return labels
        largest = [self.classes.index(name) for name in self.largest]
        return remove_components(labels, largest, self.minimum_voxels, len(self.classes))

    def module(self, network: nn.Module, training: Training) -> LightningModule:
        from medfed.models.tasks._segmentation import Segmentation

        return Segmentation(self, network, training, self.labelled_at(training.site))
