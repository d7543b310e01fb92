"""A third-party task and its metric train, measure, report, predict and export without a change in medfed."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package and its entry points, as after an installation, and a trained run."""
    tmp_path = tmp_path_factory.mktemp("plugin")
    (tmp_path / "age_plugin.py").write_text(PLUGIN)
    installed = tmp_path / "age_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: age-plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[medfed.tasks]\nage = age_plugin:Age\n[medfed.metrics]\nabsolute_error = age_plugin:AbsoluteError\n"
    )
    _write_study(tmp_path)
    done = in_new_process(tmp_path, "medfed.train('study.yaml', out='run')")
    assert done.returncode == 0, done.stderr[-3000:]
    return tmp_path


def in_new_process(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the plug-in installed, and medfed imported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", f"import medfed; {code}"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def _write_study(plugin: Path) -> None:
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


@pytest.mark.slow
def test_a_task_of_another_package_measures_and_reports(plugin: Path) -> None:
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


@pytest.mark.slow
def test_its_run_predicts_and_exports_the_networks_own_output(plugin: Path) -> None:
    done = in_new_process(
        plugin,
        "from medfed.pipeline import export, predict; predict.predict('run', 'north.csv', 'predicted'); "
        "export.export('run', 'exported', format='torchscript')",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader((plugin / "predicted" / "predictions.csv").open()))
    assert len(rows) == 60
    assert all(10 < float(row["years"]) < 100 for row in rows)
    about = json.loads((plugin / "exported" / "model.json").read_text())
    assert about["output"] == "network output"
    # One input gives one number, which no sigmoid has made a probability of.
    network = torch.jit.load(str(plugin / "exported" / "model.ts"))
    low, high = (float(network(torch.full((1, 2), value)).detach()) for value in (-50.0, 50.0))
    assert max(abs(low), abs(high)) > 1


@pytest.mark.slow
def test_its_updates_can_be_attacked(plugin: Path) -> None:
    done = in_new_process(
        plugin,
        "from medfed.cli import main; main(['audit', 'leakage', 'run', '--site', 'north', '--steps', '2', "
        "'--shadows', '0'])",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "The most that was reconstructed" in done.stdout
