"""How a task's module is trained, besides the task itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medfed.errors import StudyError
from medfed.models.optimisers import Optimiser
from medfed.models.schedules import Schedule

if TYPE_CHECKING:
    from pytorch_lightning.utilities.types import OptimizerLRScheduler
    from torch import nn


@dataclass(frozen=True)
class Training:
    """The optimiser of a module, its schedule, and where it trains.

    epochs: those of the whole run, over all rounds.  patch: the size in voxels that the network was built
    for; tasks on whole images or tables don't use it.  site: the hospital that it will train in, for tasks
    that treat hospitals differently.  spatial_dims: 2 for a network of planes (X, Y), 3 for one of volumes.
    axes: the patient's axis of each of an image's: x is left-right, y front-back, z up-down.
    """

    optimiser: Optimiser
    schedule: Schedule
    epochs: int
    patch: tuple[int, ...] | None = None
    site: str = ""
    spatial_dims: int = 3
    axes: tuple[str, ...] = ("x", "y", "z")

    def configure(self, network: nn.Module) -> OptimizerLRScheduler:
        """Return the optimiser of the trainable parameters, and its schedule, stepped once per epoch."""
        if self.epochs < 1:
            raise StudyError(f"train.epochs: {self.epochs}; a run needs at least 1")
        optimizer = self.optimiser.build(p for p in network.parameters() if p.requires_grad)
        scheduler = self.schedule.build(optimizer, self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
