"""TensorBoard's event files in the run folder."""

from __future__ import annotations

from typing import Any

from medfed.runs.trackers._tracker import TrackedRun, Tracker


class TensorBoard(Tracker, frozen=True, tag="tensorboard"):
    """TensorBoard's event files in the run folder, trackers/tensorboard/<party>."""

    def open(self, run: TrackedRun) -> Any:
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(run.place, "tensorboard", run.party)
