"""The model that a site began its first round with, from which it trains that round again after a kill -9."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from medfed.errors import RunError
from medfed.federation.checkpoints import CHECKSUM, checksum
from medfed.files import replacing
from medfed.wire.weights import Weights, as_real


def save_first_model(path: Path, weights: Weights, metadata: Mapping[str, str]) -> None:
    """Write a model and what the site needs to know of it, with a checksum over both."""
    tensors = {name: as_real(tensor).contiguous() for name, tensor in weights.items()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {**metadata, CHECKSUM: checksum(tensors, metadata)})


def load_first_model(path: Path, site: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a model and its metadata.

    Raises:
        RunError: naming the site and what to do, if these are not the bytes that were written.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = dict(file.metadata() or {})
        whole = metadata.pop(CHECKSUM, "") == checksum(tensors, metadata)
    except Exception:  # noqa: BLE001 - whatever is in a damaged file
        whole = False
    if not whole:
        raise RunError(
            f"site '{site}': the model that it began with, {path.name}, is damaged; restore it from a "
            "back-up of the run folder, or delete it: the site then goes on from the hub's newest model"
        )
    return tensors, metadata
