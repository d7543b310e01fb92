"""Several GPUs in a hospital (DDP): Lightning starts workers, and only rank 0 communicates with the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medfed.errors import ExchangeError
from medfed.exchange import DropOut, Transmission
from medfed.wire import encoding as wire
from medfed.wire.update import GlobalModel, Update

# The environment variables by which rank 0 passes its run folder and the received model to the workers.
RUN_FOLDER, MODEL = "MEDFED_RUN", "MEDFED_MODEL"


def is_worker() -> bool:
    """Return whether this process is one that Lightning started beside rank 0."""
    return RUN_FOLDER in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


class Rank0Exchange:
    """The exchange of rank 0, which passes the received model on to the worker processes."""

    def __init__(self, side: Any, run_folder: Path) -> None:
        self._side = side
        self.received: GlobalModel | None = None
        os.environ[RUN_FOLDER] = str(run_folder)

    def fetch(self, site: str, round: int) -> GlobalModel:
        received: GlobalModel = self._side.fetch(site, round)
        self.received = received
        os.environ[MODEL] = str(self._side.model_path)
        return received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)  # everything else is the site's own side, unchanged


class WorkerExchange:
    """The exchange of a worker process, which reads the model that rank 0 received and sends nothing."""

    closed = False  # rank 0 notices it, and stops the workers
    parties: tuple[str, ...] = ()

    def fetch(self, site: str, round: int) -> GlobalModel:
        return wire.read_global(Path(os.environ[MODEL]))

    def transmission(self, update: Update) -> Transmission:
        raise ExchangeError(f"site '{update.site}': only rank 0 sends")

    def send(self, update: Update) -> None:
        raise ExchangeError(f"site '{update.site}': only rank 0 sends")

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        """Do nothing: rank 0 stops too, and tells the hub."""
