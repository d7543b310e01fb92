"""A table, metrics.csv in the run folder."""

from __future__ import annotations

from itertools import chain, count
from typing import Any

from medfed.runs.trackers._tracker import TrackedRun, Tracker


class Csv(Tracker, frozen=True, tag="csv"):
    """A CSV table in the run folder, trackers/csv/<party>/metrics.csv."""

    def open(self, run: TrackedRun) -> Any:
        from pytorch_lightning.loggers import CSVLogger

        names = chain([run.party], (f"{run.party}-{number}" for number in count(2)))
        # A run that is resumed goes on in a table of its own: the logger would empty the former one.
        name = next(one for one in names if not (run.place / "csv" / one).exists())
        return CSVLogger(run.place, "csv", name, flush_logs_every_n_steps=1)
