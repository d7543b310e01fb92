"""What a checkpoint inside a round holds beside the module: the model that the round began with, and what
the round has trained so far.

An update is the difference between the module and the model that the hub sent. A checkpoint that is written
after a merge holds that model as the module's own weights; one that is written inside a round does not, so
the model goes with it, with a digest.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from medfed.errors import RunError
from medfed.federation.examples import Pass
from medfed.local_training import LocalState
from medfed.local_training._train_pass import TrainEvaluator
from medfed.wire.update import finite_scalars
from medfed.wire.weights import Weights, digest


@dataclass
class RoundProgress:
    """What a site has trained of a round so far.

    losses: one scalar per batch.  steps: those of the optimiser.  rates: the sum of their learning rates.
    scalars_before: numbers measured on the received model.  began_s: by the monotonic clock.  under_way:
    whether a batch was trained, after which the module no longer holds the received model.
    """

    losses: list[Tensor] = field(default_factory=list)
    steps: int = 0
    rates: float = 0.0
    scalars_before: dict[str, float] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    under_way: bool = False

    @property
    def mean_rate(self) -> float:
        """The mean learning rate of the steps; 0 before the first."""
        return self.rates / max(self.steps, 1)

    def add_loss(self, outputs: Any) -> None:
        """Note the loss of a batch, if training_step returned one."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self.losses.append(loss.detach().float())

    def add_step(self, optimiser: Optimizer) -> None:
        """Note a step and its learning rate."""
        if optimiser.param_groups:  # a module without an optimiser steps one that has none
            self.steps += 1
            self.rates += float(optimiser.param_groups[0]["lr"])

    def measure_before(self, evaluator: TrainEvaluator, required: Collection[str]) -> None:
        """Measure on the received model which of these numbers of the training cases are required."""
        before = self.scalars_before = {}
        if "train/loss_before" in required:
            before["train/loss_before"] = evaluator.loss()
        if "train/class_loss" in required:
            losses = finite_scalars(evaluator.class_losses())
            before |= {f"train/class_loss/{name}": value for name, value in losses.items()}
            if losses:
                before["train/class_loss"] = sum(losses.values()) / len(losses)

    def scalars(self) -> dict[str, float]:
        """Return the numbers of training that go with an update."""
        scalars = {"train/steps": float(self.steps), "train/seconds": time.monotonic() - self.began_s}
        if self.losses:
            # Those from before a resume are on the CPU.
            device = self.losses[-1].device
            scalars["train/loss"] = float(torch.stack([loss.to(device) for loss in self.losses]).mean())
        if self.steps:
            scalars["train/rate"] = self.mean_rate
        return {**scalars, **self.scalars_before}


def kept_of(progress: RoundProgress, received: Weights, seen: Pass) -> dict[str, Any]:
    """Return what goes into a checkpoint: plain dictionaries, numbers and CPU tensors.

    `received` is the model that the round began with, `seen` what the present pass has trained on.
    """
    weights = {name: received[name].detach().cpu() for name in received}
    return {
        "weights": weights,
        "sha256": digest(weights),
        "losses": [loss.cpu() for loss in progress.losses],
        "steps": progress.steps,
        "rates": progress.rates,
        "scalars_before": dict(progress.scalars_before),
        "seconds": time.monotonic() - progress.began_s,
        "under_way": progress.under_way,
        "batches": seen.batches,
        "samples": seen.samples,
    }


def received_of(kept: Mapping[str, Any], site: str, round: int) -> dict[str, Tensor]:
    """Return the model that the round began with.

    Raises:
        RunError: if it is not the one that was kept: the update would be a difference to another model.
    """
    weights: dict[str, Tensor] = kept["weights"]
    if (found := digest(weights)) != kept["sha256"]:
        raise RunError(
            f"site '{site}': its checkpoint holds the model from which round {round + 1} trains, with the "
            f"digest {found[:12]}, and {kept['sha256'][:12]} was written: the file is damaged. Restore it "
            "from a back-up, or resume from an earlier checkpoint; nothing was trained or sent"
        )
    return weights


def refuse_inside(trainer: pl.Trainer, site: str, local_epochs: int) -> None:
    """Refuse to go on inside a round from a checkpoint that does not hold the model of that round.

    Raises:
        RunError: if that is where its training stopped.
    """
    loop = trainer.fit_loop
    inside_epoch = loop.restarted_mid_epoch and not loop.epoch_loop.batch_progress.is_last_batch
    if trainer.current_epoch % local_epochs or inside_epoch:
        raise RunError(
            f"site '{site}': the checkpoint was written inside a round by an earlier medfed, without the "
            "model that the hub sent for it, so the difference to that model is not known. Resume from a "
            "checkpoint of a round's end, or fit without one, from the hub's newest model; nothing is trained"
        )


def progress_of(kept: Mapping[str, Any]) -> tuple[RoundProgress, Pass]:
    """Return what was trained of the round, and of the present pass, when the checkpoint was written."""
    progress = RoundProgress(
        losses=list(kept["losses"]),
        steps=kept["steps"],
        rates=kept["rates"],
        scalars_before=dict(kept["scalars_before"]),
        began_s=time.monotonic() - kept["seconds"],
        under_way=kept["under_way"],
    )
    return progress, Pass(kept["batches"], kept["samples"])


def names_on_accelerator(state: LocalState) -> dict[str, list[str]]:
    """Return which tensors of a local method's state are not on the CPU, by group.

    Lightning reads all tensors of a checkpoint to the CPU, where some of a state belong.
    """
    return {
        group: [name for name, tensor in tensors.items() if tensor.device.type != "cpu"]
        for group, tensors in state.items()
    }


def on_device(state: LocalState, names: Mapping[str, Sequence[str]], device: torch.device) -> LocalState:
    """Return a local method's state with these tensors, by group, on a device."""
    return {
        group: {
            name: tensor.to(device) if name in names.get(group, ()) else tensor
            for name, tensor in tensors.items()
        }
        for group, tensors in state.items()
    }
