"""medfed: one model over many hospitals; images stay where they are.

The public names are loaded when they are first used, so that importing medfed does not import torch. Type
checkers see the same names as ordinary imports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medfed.aggregation.fedavg import FedAvg
    from medfed.data.datamodule import SiteDataModule
    from medfed.data.read import read, read_label
    from medfed.data.volume import Volume
    from medfed.deployment.enrolment import enrol
    from medfed.errors import (
        AuditError,
        DataError,
        DeadlineError,
        DeclinedError,
        EgressError,
        EndedError,
        EnrolmentError,
        ExchangeError,
        ForgedError,
        ImageError,
        LabelError,
        LedgerError,
        MedfedError,
        PrivacyError,
        QuorumError,
        RegistryError,
        RuleError,
        RunError,
        SiteError,
        StorageError,
        StudyError,
        TooFewPatientsError,
        UpdateError,
        WireError,
    )
    from medfed.exchange.folder import Folder
    from medfed.exchange.memory import MemoryExchange
    from medfed.exchange.nats import Nats
    from medfed.federation.callback import FederatedCallback
    from medfed.federation.config import CallbackOptions, HubConfig
    from medfed.federation.model_selection import ModelSelection
    from medfed.federation.own_scripts import Hub, open_site
    from medfed.federation.simulation import run_federation
    from medfed.pipeline.evaluate import evaluate
    from medfed.pipeline.train import train
    from medfed.study.reading import read_study
    from medfed.study.study import Study
    from medfed.wire.update import Update
    from medfed.wire.weights import load, weights_of

__version__: str

__all__ = [
    "AuditError",
    "CallbackOptions",
    "DataError",
    "DeadlineError",
    "DeclinedError",
    "EgressError",
    "EndedError",
    "EnrolmentError",
    "ExchangeError",
    "FedAvg",
    "FederatedCallback",
    "Folder",
    "ForgedError",
    "Hub",
    "HubConfig",
    "ImageError",
    "LabelError",
    "LedgerError",
    "MedfedError",
    "MemoryExchange",
    "ModelSelection",
    "Nats",
    "PrivacyError",
    "QuorumError",
    "RegistryError",
    "RuleError",
    "RunError",
    "SiteDataModule",
    "SiteError",
    "StorageError",
    "Study",
    "StudyError",
    "TooFewPatientsError",
    "Update",
    "UpdateError",
    "Volume",
    "WireError",
    "enrol",
    "evaluate",
    "load",
    "open_site",
    "read",
    "read_label",
    "read_study",
    "run_federation",
    "train",
    "weights_of",
]

# The module of each public name; the errors' is medfed.errors.
_MODULES = {
    "CallbackOptions": "medfed.federation.config",
    "FedAvg": "medfed.aggregation.fedavg",
    "FederatedCallback": "medfed.federation.callback",
    "Folder": "medfed.exchange.folder",
    "Hub": "medfed.federation.own_scripts",
    "HubConfig": "medfed.federation.config",
    "MemoryExchange": "medfed.exchange.memory",
    "ModelSelection": "medfed.federation.model_selection",
    "Nats": "medfed.exchange.nats",
    "SiteDataModule": "medfed.data.datamodule",
    "Study": "medfed.study.study",
    "Update": "medfed.wire.update",
    "Volume": "medfed.data.volume",
    "enrol": "medfed.deployment.enrolment",
    "evaluate": "medfed.pipeline.evaluate",
    "load": "medfed.wire.weights",
    "open_site": "medfed.federation.own_scripts",
    "read": "medfed.data.read",
    "read_label": "medfed.data.read",
    "read_study": "medfed.study.reading",
    "run_federation": "medfed.federation.simulation",
    "train": "medfed.pipeline.train",
    "weights_of": "medfed.wire.weights",
}

# Hidden from type checkers, for which a module with __getattr__ has every name.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("medfed")
        if name not in __all__:
            raise AttributeError(
                f"module 'medfed' has no attribute '{name}'; public are {', '.join(__all__)}"
            )
        return getattr(importlib.import_module(_MODULES.get(name, "medfed.errors")), name)

    def __dir__():
        return __all__
