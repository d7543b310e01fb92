"""A run's models on disk, in a file that Lightning and plain torch read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.errors import RunError
from medfed.files import format_bytes, not_written, replacing

if TYPE_CHECKING:
    from torch import Tensor


def save_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    round: int,
    postprocess: Mapping[str, float | str] | None = None,
) -> None:
    """Write a model so that both Lightning and plain `torch.load(weights_only=True)` read it.

    `postprocess` says which components are removed of what it predicts, where a study has chosen that.

    Raises:
        StorageError: if the disk is full.
        RunError: if it cannot be written for another reason.
    """
    import torch

    content = {
        "state_dict": dict(weights),
        "pytorch-lightning_version": version("pytorch-lightning"),
        "epoch": round,
        "global_step": round,
        **({} if postprocess is None else {"postprocess": dict(postprocess)}),
    }
    try:
        with replacing(path) as unfinished:
            torch.save(content, unfinished)
    except (OSError, RuntimeError) as error:  # torch's writer calls a full disk a RuntimeError
        free = format_bytes(shutil.disk_usage(path.parent).free)
        raise not_written(
            f"{path.name}: the model cannot be written ({type(error).__name__}; {free} are free in the run "
            "folder)",
            error,
            "resume the run, which goes on from the last round",
        ) from None


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, on the CPU.

    Raises:
        RunError: if the file is missing, damaged or no checkpoint.
    """
    import torch

    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception:  # noqa: BLE001 - torch raises EOFError, RuntimeError, UnpicklingError and more
        raise RunError(
            f"{path.name}: this checkpoint is missing or damaged; copy the run folder again, or delete the "
            "file and resume the run"
        ) from None
    return weights


def load_or_train(path: Path, rounds: int, train: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return the weights of a checkpoint; if it does not exist, train them and save it."""
    if path.exists():
        return load_checkpoint(path)
    weights = train()
    save_checkpoint(path, weights, rounds)
    return weights
