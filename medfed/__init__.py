"""medfed: one model over many hospitals; images stay where they are.

The public names below are loaded when they are first used, so that importing medfed does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "FederatedCallback": "medfed.federation.callback",
    "ImageError": "medfed.errors",
    "MedfedError": "medfed.errors",
    "MemoryExchange": "medfed.exchange",
    "QuorumError": "medfed.errors",
    "Update": "medfed.wire.update",
    "Volume": "medfed.data.volume",
    "evaluate": "medfed.pipeline.train",
    "read": "medfed.data.read",
    "read_label": "medfed.data.read",
    "read_study": "medfed.study.study",
    "run_federation": "medfed.federation.simulation",
    "train": "medfed.pipeline.train",
    "weights_of": "medfed.wire.weights",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'medfed' has no attribute '{name}'; public are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
