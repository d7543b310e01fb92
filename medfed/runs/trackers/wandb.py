"""A server of Weights & Biases, or its offline files in the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from medfed.runs.trackers._tracker import TrackedRun, Tracker, check_url


class WandB(Tracker, frozen=True, tag="wandb"):
    """Weights & Biases: one project per study, one run per party. It needs the extra `wandb`.

    url: the server; its key is in WANDB_API_KEY.  Null writes offline files, trackers/wandb in the folder.

    W&B by itself also sends the terminal's output, the command line, the code's state and the machine's name
    and load, and reports of its own errors: all of that is off.
    """

    packages: ClassVar[Mapping[str, str]] = {"wandb": "medfed[wandb]"}

    url: str | None = None

    def __post_init__(self) -> None:
        check_url("wandb", self.url)

    @property
    def address(self) -> str:
        return self.url or ""

    def open(self, run: TrackedRun) -> Any:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # before its service starts, which reads it

        import wandb
        from pytorch_lightning.loggers import WandbLogger

        settings = wandb.Settings(
            base_url=self.url or "http://127.0.0.1",
            console="off",
            host=run.party,
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        folder = run.place / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        return WandbLogger(
            name=run.party,
            save_dir=folder,
            project=run.study,
            offline=self.url is None,
            log_model=False,
            settings=settings,
        )
