"""Several GPUs in a hospital (DDP): Lightning starts workers, and only rank 0 communicates with the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfed.errors import ExchangeError
from medfed.exchange import DropOut, Transmission
from medfed.files import write_whole
from medfed.wire import encoding as wire
from medfed.wire.update import GlobalModel, Update

# The environment variables by which rank 0 passes its run folder and the received model to the workers.
RUN_FOLDER, MODEL = "MEDFED_RUN", "MEDFED_MODEL"
# In the hospital's own folder of the run: the tokens of the cases that rank 0 could not read.
LEFT_OUT = "left-out-cases.json"


def is_worker() -> bool:
    """Return whether this process is one that Lightning started beside rank 0."""
    return RUN_FOLDER in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


def read_left_out(folder: Path) -> tuple[str, ...]:
    """Return the tokens of the cases that rank 0 left out, so that a worker need not read every case, too.

    All ranks thereby train on the same cases, even where one of them would fail to read a file.
    """
    tokens: list[str] = json.loads((folder / LEFT_OUT).read_text(encoding="utf-8"))
    return tuple(tokens)


class Rank0Exchange:
    """The exchange of rank 0, which passes the received model on to the worker processes.

    Args:
        side: this site's side of the exchange with the hub.
        run_folder: the run's folder, in which workers find the study.
        site_folder: the site's own part of it.
        left_out: the tokens of the cases that this process could not read.
    """

    def __init__(self, side: Any, run_folder: Path, site_folder: Path, left_out: Sequence[str] = ()) -> None:
        self._side = side
        write_whole(site_folder / LEFT_OUT, json.dumps(list(left_out)))
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
        # As a whole: rank 0 writes a later model over this file, and knows its own readers only.
        model = wire.read_global(Path(os.environ[MODEL]))
        return replace(
            model,
            weights=dict(model.weights),
            groups={name: dict(group) for name, group in model.groups.items()},
        )

    def transmission(self, update: Update) -> Transmission:
        raise ExchangeError(f"site '{update.site}': only rank 0 sends")

    def send(self, update: Update) -> None:
        raise ExchangeError(f"site '{update.site}': only rank 0 sends")

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        """Do nothing: rank 0 stops too, and tells the hub."""
