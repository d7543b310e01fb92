"""Contracts for kinds of your own: `check_rule(MyRule())` raises an error that names each broken promise.

A contract is the list of checks that medfed's own kinds pass in its tests. None needs pytest. `skip` leaves
out checks by name, for a kind that departs from the contract on purpose. For one test per check:

    @pytest.mark.parametrize("name", check_rule.checks)
    def test_my_rule(name):
        check_rule.checks[name](MyRule())

Most contracts take the record itself. A layout and a reader need something to read: `check_layout` takes a
`LayoutExample` with a small folder, `check_datamodule` a `DataModuleExample` likewise, `check_reader` a
`ReaderExample` with a volume. `check_exchange` takes an exchange that the hub and the sites 'north' and
'south' reach from this process. `CONTRACTS` holds the contracts by registry.
"""

from typing import Any

from medfed.testing._compression import check_compression
from medfed.testing._contract import Contract, NotApplicable
from medfed.testing._datamodules import DataModuleExample, check_datamodule
from medfed.testing._exchange import check_exchange
from medfed.testing._layouts import PATIENT, ExpectedCase, LayoutExample, check_layout
from medfed.testing._local_training import check_local_method
from medfed.testing._losses import check_loss
from medfed.testing._metrics import check_metric_family
from medfed.testing._networks import check_network
from medfed.testing._normalise import check_normalise
from medfed.testing._optimisers import check_optimiser
from medfed.testing._privacy import check_privacy
from medfed.testing._readers import ReaderExample, check_reader
from medfed.testing._rules import check_rule
from medfed.testing._schedules import check_schedule
from medfed.testing._tasks import check_task
from medfed.testing._trackers import check_tracker
from medfed.testing._transforms import check_transform

# The contract of each registry of `medfed.registry`.
CONTRACTS: dict[str, Contract[Any]] = {
    "aggregation": check_rule,
    "local_training": check_local_method,
    "privacy": check_privacy,
    "compression": check_compression,
    "exchange": check_exchange,
    "tasks": check_task,
    "networks": check_network,
    "losses": check_loss,
    "optimisers": check_optimiser,
    "schedules": check_schedule,
    "metrics": check_metric_family,
    "normalise": check_normalise,
    "layouts": check_layout,
    "transforms": check_transform,
    "trackers": check_tracker,
    "datamodules": check_datamodule,
}

__all__ = [
    "CONTRACTS",
    "PATIENT",
    "Contract",
    "DataModuleExample",
    "ExpectedCase",
    "LayoutExample",
    "NotApplicable",
    "ReaderExample",
    "check_compression",
    "check_datamodule",
    "check_exchange",
    "check_layout",
    "check_local_method",
    "check_loss",
    "check_metric_family",
    "check_network",
    "check_normalise",
    "check_optimiser",
    "check_privacy",
    "check_reader",
    "check_rule",
    "check_schedule",
    "check_task",
    "check_tracker",
    "check_transform",
]
