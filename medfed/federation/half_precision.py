"""Refusal of convolutions in bfloat16 on a CPU, whose gradients PyTorch does not compute reliably.

For small images oneDNN's bfloat16 kernels return weight gradients that were never initialised (NaN, or finite
and wrong), and some shapes end the process (seen with PyTorch 2.13 on AVX-512). float32 and GPUs are right.
"""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn
from torch.nn.modules.conv import _ConvNd

from medfed.errors import StudyError


def refuse_bfloat16_convolutions(trainer: pl.Trainer, module: nn.Module, site: str) -> None:
    """Refuse to train convolutions in bfloat16 on a CPU.

    Raises:
        StudyError: if the Trainer's device is a CPU, its precision is bf16 (to which Lightning changes
            16-mixed there) and the module holds a convolution.
    """
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and "bf16" in str(trainer.precision):
        for name, layer in module.named_modules():
            if isinstance(layer, _ConvNd):
                raise StudyError(
                    f"site '{site}': precision is {trainer.precision} on a CPU, and '{name}' is a "
                    "convolution; PyTorch's gradients of convolutions in bfloat16 are unreliable there. Use "
                    "precision 32, or a GPU"
                )
