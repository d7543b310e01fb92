"""TorchScript: one file that torch runs without medfed and without the network's code."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from medfed.files import private_folder, write_whole
from medfed.pipeline.export._exported_model import ExportedModel

FILE = "model.ts"


def write(exported: ExportedModel, folder: Path) -> None:
    """Write the traced network and a description of inputs and outputs, checked against the module."""
    difference = trace(exported, folder / FILE)
    write_whole(folder / "model.json", exported.describe(difference))


def trace(exported: ExportedModel, path: Path) -> float:
    """Write the traced network, and return its largest difference from the module.

    Raises:
        RunError: if the file computes something else.
    """
    private_folder(path.parent)
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing bakes in shape checks; silence torch's TracerWarnings.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch.jit has no types
            exported.computed, exported.inputs(1), check_trace=False
        )
        torch.jit.save(traced, str(path))
        loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]  # torch.jit has no types

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            outputs = loaded(*inputs)
        assert isinstance(outputs, torch.Tensor)
        return outputs

    return exported.check(run, "TorchScript")
