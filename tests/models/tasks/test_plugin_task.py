"""A third-party task and its metric train, measure and report without a change in medfed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]

PLUGIN = """
from typing import ClassVar

import torch
from pytorch_lightning import LightningModule

from medfed.evaluation.metrics import CaseValue, Metric, PredictionMetrics
from medfed.models.tasks import Task

MEAN, DEVIATION = 55.0, 10.0


class Age(Task, tag="age", frozen=True):
    \"""Regression of a whole number from the other columns.\"""

    needs: ClassVar[str] = "table"
    metrics: ClassVar[tuple[str, ...]] = ("absolute_error",)

    @property
    def outputs(self):
        return 1

    @property
    def scores(self):
        return ("val/loss",)

    def module(self, network, training):
        return Regression(network, training.optimiser)


class Regression(LightningModule):
    def __init__(self, network, optimiser):
        super().__init__()
        self.network, self._optimiser = network, optimiser

    def loss(self, batch):
        target = (batch["target"].float() - MEAN) / DEVIATION
        return torch.nn.functional.mse_loss(self.network(batch["features"]).squeeze(1), target)

    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["target"]))
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(batch), batch_size=len(batch["target"]))

    def predict_step(self, batch, index):
        value = self.network(batch["features"]).squeeze(1) * DEVIATION + MEAN
        return {"case": batch["case"], "years": value}

    def configure_optimizers(self):
        return self._optimiser.build(self.network.parameters())


class AbsoluteError(PredictionMetrics, tag="absolute_error", frozen=True):
    \"""Distance of a predicted age from the measured one.\"""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "absolute_error", "Absolute error", 1, unit="years", better="lower", highest=None, headline=True,
            compared=True,
        ),
    )

    def measure(self, case):
        error = float(case.outputs["years"]) - float(case.batch["target"])
        return {"absolute_error": CaseValue(abs(error))}
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Return a folder for sys.path with the package and its entry points, as after an installation."""
    (tmp_path / "age_plugin.py").write_text(PLUGIN)
    installed = tmp_path / "age_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: age-plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[medfed.tasks]\nage = age_plugin:Age\n[medfed.metrics]\nabsolute_error = age_plugin:AbsoluteError\n"
    )
    return tmp_path


def test_a_task_of_another_package_trains_measures_and_reports(plugin: Path) -> None:
    generator = random.Random(0)
    for site in ("north", "south"):
        lines = ["patient,pressure,stiffness,years"]
        for number in range(60):
            years = generator.randint(30, 80)
            pressure, stiffness = (
                100 + 0.5 * years + generator.gauss(0, 5),
                0.1 * years + generator.gauss(0, 1),
            )
            lines.append(f"{site}{number},{pressure:.1f},{stiffness:.2f},{years}")
        (plugin / f"{site}.csv").write_text("\n".join(lines))
    study = {
        "name": "years",
        "task": {"kind": "age"},
        "network": {"kind": "fully_connected", "hidden": []},
        "data": {"kind": "table", "target": "years", "features": ["pressure", "stiffness"]},
        "train": {"rounds": 3, "epochs": 2, "optimiser": {"kind": "adam", "lr": 0.1}},
        "sites": {"north": "north.csv", "south": "south.csv"},
    }
    (plugin / "study.yaml").write_text(yaml.safe_dump(study))
    code = "import medfed; medfed.train('study.yaml', out='run')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(plugin), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=plugin, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (plugin / "run" / "rows.jsonl").read_text().splitlines()]
    errors = {
        row["site"]: row["value"]
        for row in rows
        if row["metric"] == "absolute_error"
        and row["model"] == "federated"
        and row["split"] == "test"
        and row.get("group") is None
        and row.get("against") is None
    }
    assert set(errors) >= {"north", "south"}
    assert all(0 < value < 25 for value in errors.values())
    assert any(row["metric"] == "absolute_error" and row.get("against") for row in rows)
    assert "Absolute error" in (plugin / "run" / "report.html").read_text()
