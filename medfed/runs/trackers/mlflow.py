"""An MLflow server, or MLflow's files in the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from medfed.runs.trackers._tracker import TrackedRun, Tracker, check_url

# MLflow by itself reports its use to a public service of its makers', from inside the hospital, and prints a
# run's address on the standard output, where `--json` prints a command's result.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


class MLflow(Tracker, frozen=True, tag="mlflow"):
    """An MLflow server: one experiment per study, one run per party. It needs the extra `mlflow`.

    url: the server; its name and password are in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    MLflow by itself also tags a run with the account that runs it, the path of its script and the state of
    its code: a run here has no tag but its name, and its user is 'unknown'.  Its telemetry is off.
    """

    packages: ClassVar[Mapping[str, str]] = {"mlflow": "medfed[mlflow]"}

    url: str

    def __post_init__(self) -> None:
        check_url("mlflow", self.url)

    @property
    def address(self) -> str:
        return self.url

    def open(self, run: TrackedRun) -> Any:
        os.environ.update(QUIET)  # before the import, which begins to report

        from mlflow import MlflowClient
        from pytorch_lightning.loggers import MLFlowLogger

        client = MlflowClient(tracking_uri=self.url)
        known = client.get_experiment_by_name(run.study)
        experiment = known.experiment_id if known is not None else client.create_experiment(run.study)
        # A run that Lightning's logger creates has MLflow's tags of the account and of the machine.
        created = client.create_run(experiment, run_name=run.party)
        return MLFlowLogger(run.study, tracking_uri=self.url, run_id=created.info.run_id, log_model=False)
