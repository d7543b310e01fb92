"""What a run leaves behind, and where: one folder, plain files, nothing that needs medfed to be read."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import RunError

# The packages whose versions decide what a run computes.
VERSIONED = ("medfed", "torch", "pytorch-lightning", "monai", "numpy", "nibabel", "pydicom", "torchmetrics")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    study.yaml  the study with every default written out     run.json    digest, versions, seeds, hardware, command
    rows.jsonl  what was measured, over groups of patients   cases.jsonl per patient; it stays in the hospital
    reported.jsonl  at a hub: what hospitals told of their own measurement, over groups of patients
    rounds.jsonl  a line a round and site                    audit.jsonl what crossed a hospital's wall
    checkpoints/  models that Lightning and torch read       sites/      what each site needs to resume, its TensorBoard
    hub/          the newest rounds, to resume from          report.html the report
    cases.html  pictures of the best, median and worst cases and of failures; it stays in the hospital
    """

    path: Path

    @property
    def study(self) -> Path:
        return self.path / "study.yaml"

    @property
    def facts(self) -> Path:
        return self.path / "run.json"

    @property
    def rows(self) -> Path:
        return self.path / "rows.jsonl"

    @property
    def rows_csv(self) -> Path:
        return self.path / "rows.csv"

    @property
    def curves(self) -> Path:
        return self.path / "curves.jsonl"

    @property
    def cases(self) -> Path:
        return self.path / "cases.jsonl"

    @property
    def gallery(self) -> Path:
        return self.path / "cases.html"

    @property
    def reported(self) -> Path:
        return self.path / "reported.jsonl"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def audit(self) -> Path:
        return self.path / "audit.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def hub(self) -> Path:
        return self.path / "hub"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def site(self, name: str) -> Path:
        """Return the folder of one site's own state, made if it isn't there."""
        folder = self.path / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def checkpoint(self, model: str) -> Path:
        """Return where a model's checkpoint lies: 'federated', 'local:north'."""
        return self.checkpoints / f"{model.replace(':', '-')}.ckpt"

    def read_facts(self) -> dict[str, Any]:
        """Return what run.json says.

        Raises:
            RunError: if this is no run folder.
        """
        try:
            return msgspec.json.decode(self.facts.read_bytes())
        except FileNotFoundError:
            raise RunError(
                f"{self.path}: no run folder: it has no {self.facts.name}; give the folder that medfed train "
                f"printed"
            ) from None
        except msgspec.DecodeError:
            raise RunError(f"{self.facts}: is damaged: not JSON") from None

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write run.json whole, never half."""
        write_whole(self.facts, msgspec.json.format(msgspec.json.encode(dict(facts)), indent=2))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file aside and move it into place, so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".writing")
    aside.write_bytes(data)
    aside.replace(path)


def save_checkpoint(path: Path, weights: Mapping[str, Any], round: int) -> None:
    """Write a model so that both Lightning and plain `torch.load(weights_only=True)` read it."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    torch.save(
        {
            "state_dict": dict(weights),
            "pytorch-lightning_version": version("pytorch-lightning"),
            "epoch": round,
            "global_step": round,
        },
        aside,
    )
    aside.replace(path)


def surroundings() -> dict[str, Any]:
    """Return versions and hardware, for the report's reproducibility block."""
    import torch

    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    hardware = f"{platform.machine()}, {os.cpu_count()} cores, {device}, {platform.system()}"
    return {"versions": versions, "hardware": hardware, "command": _command()}


def _command() -> str:
    """Return the command line without folders: where a hospital keeps its files is not the report's business."""
    return " ".join(["medfed", *(Path(part).name if os.sep in part else part for part in sys.argv[1:])])
