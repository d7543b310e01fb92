"""A hospital of several GPUs: Lightning starts processes beside the first one, and only the first
speaks with the hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medfed.errors import ExchangeError
from medfed.exchange import Transmission
from medfed.wire import encoding as wire
from medfed.wire.update import GlobalModel, Update

# Where the first process of a hospital tells those beside it its run folder and what it received.
RUN, MODEL = "MEDFED_RUN", "MEDFED_MODEL"


def is_worker() -> bool:
    """Whether this process is one that Lightning started beside a hospital's first."""
    return RUN in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


class Rank0Exchange:
    """The exchange as the first process of a hospital uses it; what it received is told to those beside it."""

    def __init__(self, side: Any, run_folder: Path) -> None:
        self._side = side
        self.received: GlobalModel | None = None
        os.environ[RUN] = str(run_folder)

    def fetch(self, site: str, round: int) -> GlobalModel:
        self.received = self._side.fetch(site, round)
        os.environ[MODEL] = str(self._side.model_path)
        assert self.received is not None
        return self.received

    def transmission(self, update: Update) -> Transmission:
        return self._side.transmission(update)

    def send(self, update: Update) -> None:
        self._side.send(update)

    @property
    def closed(self) -> bool:
        return self._side.closed

    def withdraw(self, site: str, reason: str) -> None:
        self._side.withdraw(site, reason)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)  # messages and receipts: as they are


class WorkerExchange:
    """The exchange of a process that Lightning started beside the first: it reads what that one received."""

    def fetch(self, site: str, round: int) -> GlobalModel:
        return wire.read_global(Path(os.environ[MODEL]))

    def transmission(self, update: Update) -> Transmission:
        raise ExchangeError(f"site '{update.site}': only the hospital's first process sends")

    def send(self, update: Update) -> None:
        raise ExchangeError(f"site '{update.site}': only the hospital's first process sends")

    @property
    def closed(self) -> bool:
        return False  # the first process sees it, and stops the others

    def withdraw(self, site: str, reason: str) -> None:
        pass  # the first process stops too, and says so
