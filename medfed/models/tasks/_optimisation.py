"""The return value of `configure_optimizers`, which Lightning calls."""

from __future__ import annotations

from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from medfed.errors import StudyError
from medfed.models.optimisers import Optimiser
from medfed.models.schedules import Schedule

Configured = OptimizerLRScheduler


def optimisation(network: nn.Module, optimiser: Optimiser, schedule: Schedule, epochs: int) -> Configured:
    """Return the optimiser of the trainable parameters and its schedule, stepped once per epoch."""
    if epochs < 1:
        raise StudyError(f"train.epochs: {epochs}; a run needs at least 1")
    optimizer = optimiser.build(parameter for parameter in network.parameters() if parameter.requires_grad)
    scheduler = schedule.build(optimizer, epochs)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without MONAI's metadata, which costs a Python call in every operation."""
    as_tensor = getattr(tensor, "as_tensor", None)
    return tensor if as_tensor is None else as_tensor()
