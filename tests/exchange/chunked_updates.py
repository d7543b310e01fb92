"""Updates of many small chunks over a folder, and how many of them have arrived."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from medfed.wire.update import Update
from medfed.wire.weights import Difference

STUDY = "6" * 64
PATIENCE_S = 60

# 4000 float32 values and their header make 17 chunks.
CHUNK_BYTES, VALUES = 1000, 4000


def filled(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((VALUES,), value)}


def filled_update(value: float, round: int = 1) -> Update:
    return Update("north", round, Difference(filled(value), filled(0.0)), 3)


def received_chunks(folder: Path, name: str) -> int:
    """Return how many chunks of an incoming object a party holds."""
    index = folder / f"{name}.got"
    return (index.stat().st_size - 64) // 4 if index.exists() else 0


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
