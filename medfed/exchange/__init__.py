"""How sites and the hub exchange models and updates: one file per exchange, named after it.

    memory      all parties in one process, for simulation
    folder      any shared storage that fsspec reaches
    nats        a NATS JetStream broker
    flower      a site in a Flower network, which others lead and whose FedAvg merges
    nvflare     a site in an NVFlare network, likewise

To add one, write `exchange/<name>.py` with an `Exchange` record tagged `<name>` whose `open_hub` and
`open_site` return objects with the methods of `HubSide` and `SiteSide`; the contract test in
tests/contracts/test_exchange.py finds it. An exchange across machines only needs an `ObjectStore`
(`_object_store.py`): `HubTransport` and `SiteTransport` do the rest. A network whose hub is not medfed's
needs a `Link` (`_network_site.py`). An exchange moves bytes that `wire` encoded and decides nothing:
`federation/hub.py` chooses who takes part and what is merged.

The names below are loaded when they are first used: a Flower ClientApp imports this package without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medfed.exchange._drop_out import DropOut, detail_of, reason_of
    from medfed.exchange._exchange import (
        AwaitsReturn,
        HubSide,
        ReceivedUpdate,
        SiteSide,
        SupportsAsync,
        SupportsJoining,
        Transmission,
    )
    from medfed.exchange._record import Exchange, Offer
    from medfed.exchange.memory import MemoryExchange

__all__ = [
    "AwaitsReturn",
    "DropOut",
    "Exchange",
    "HubSide",
    "MemoryExchange",
    "Offer",
    "ReceivedUpdate",
    "SiteSide",
    "SupportsAsync",
    "SupportsJoining",
    "Transmission",
    "detail_of",
    "reason_of",
]

_MODULES = {
    "DropOut": "_drop_out",
    "Exchange": "_record",
    "MemoryExchange": "memory",
    "Offer": "_record",
    "detail_of": "_drop_out",
    "reason_of": "_drop_out",
}

# Hidden from type checkers, for which a module with __getattr__ has every name.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'medfed.exchange' has no attribute '{name}'")
        return getattr(importlib.import_module(f"medfed.exchange.{_MODULES.get(name, '_exchange')}"), name)
