"""How sites and the hub exchange models and updates: one file per exchange, named after it.

    memory      all parties in one process, for simulation
    folder      any shared storage that fsspec reaches
    nats        a NATS JetStream broker

To add one, write `exchange/<name>.py` with an `Exchange` record tagged `<name>` whose `open_hub` and
`open_site` return objects with the methods of `HubSide` and `SiteSide`; the contract test in
tests/contracts/test_exchange.py finds it. An exchange across machines only needs an `ObjectStore`
(`_object_store.py`): `HubTransport` and `SiteTransport` do the rest. An exchange moves bytes that `wire`
encoded and decides nothing: `federation/hub.py` chooses who takes part and what is merged.
"""

from medfed.exchange._drop_out import DropOut, detail_of, reason_of
from medfed.exchange._exchange import (
    Exchange,
    HubSide,
    Offer,
    ReceivedUpdate,
    SiteSide,
    SupportsAsync,
    Transmission,
)
from medfed.exchange.memory import MemoryExchange

__all__ = [
    "DropOut",
    "Exchange",
    "HubSide",
    "MemoryExchange",
    "Offer",
    "ReceivedUpdate",
    "SiteSide",
    "SupportsAsync",
    "Transmission",
    "detail_of",
    "reason_of",
]
