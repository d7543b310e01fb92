"""How sites and hub meet: one file an exchange, named after it.

To add one, write `exchange/<name>.py` with an `Exchange` record tagged `<name>` whose `open_hub`
and `open_site` return something with the verbs of `Hub` and `Site`; the contract test in
tests/contracts finds it. An exchange moves bytes that `wire` made. It decides nothing: who takes
part and what is merged is `federation/hub.py`'s.
"""

from medfed.exchange._exchange import Exchange, HubSide, Receipt, ReceivedUpdate, SiteSide, SupportsAsync
from medfed.exchange.memory import MemoryExchange

__all__ = ["Exchange", "HubSide", "MemoryExchange", "Receipt", "ReceivedUpdate", "SiteSide", "SupportsAsync"]
