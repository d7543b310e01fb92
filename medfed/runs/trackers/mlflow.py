"""An MLflow server, or MLflow's files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from medfed.runs.trackers._tracker import TrackedRun, Tracker, check_url


class MLflow(Tracker, frozen=True, tag="mlflow"):
    """An MLflow server: one experiment per study, one run per party. It needs the extra `mlflow`.

    url: the server; its name and password are in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """

    packages: ClassVar[Mapping[str, str]] = {"mlflow": "medfed[mlflow]"}

    url: str

    def __post_init__(self) -> None:
        check_url("mlflow", self.url)

    @property
    def address(self) -> str:
        return self.url

    def open(self, run: TrackedRun) -> Any:
        from pytorch_lightning.loggers import MLFlowLogger

        return MLFlowLogger(run.study, run.party, tracking_uri=self.url, log_model=False)
