"""Several findings per image at once, each present or absent, such as the findings of a chest radiograph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.errors import StudyError
from medfed.models.losses.multilabel_cross_entropy import MultilabelCrossEntropy
from medfed.models.tasks._task import AnyLoss, Task, check_loss, check_names
from medfed.models.tasks._training import Training

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import nn


class Multilabel(Task, tag="multilabel", frozen=True):
    """Several findings per image, each present or absent; an image may have all, some or none of them.

    `classes` names the findings. Each is a column of the site's table of cases with 1 (present), 0 (absent)
    or nothing (not labelled), or a word of the column that `data.findings` names. What is not labelled
    counts neither in the loss nor in a score.
    """

    needs = "multilabel"

    classes: tuple[str, ...]
    loss: AnyLoss = MultilabelCrossEntropy()

    def __post_init__(self) -> None:
        if not self.classes:
            raise StudyError("task 'multilabel': classes is empty; name the findings, one or more")
        check_names(self, self.classes)
        check_loss(self, self.loss)
        self.loss.build(len(self.classes))

    @property
    def outputs(self) -> int:
        return self.loss.outputs(len(self.classes))

    @property
    def scores(self) -> tuple[str, ...]:
        return ("val/loss", "val/auroc")

    def module(self, network: nn.Module, training: Training) -> LightningModule:
        from medfed.models.tasks._multilabel import FindingClassification

        return FindingClassification(self.classes, self.loss, network, training)
