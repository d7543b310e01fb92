"""nnU-Net v2 on the cases of a benchmark, pooled, for a given time, in an environment of its own.

Isensee et al., Nature Methods 2021, arXiv:1904.08128; its own code (Apache 2.0) from PyPI. The environment is
made in a folder and thrown away with it; it uses the torch of the environment that calls it. nnU-Net has no
limit of time, so some steps are timed, and the number of epochs follows, over which its schedule runs. It
trains on the cases that the hospitals train on (fold `all`), stored in one orientation, since it does not
turn images.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np

VERSION = "nnunetv2>=2.5,<3"
DATASET = "Dataset501_Hospitals"
ITERATIONS, TRIAL = 10, 2
TRAINER = '''
import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerBudget(nnUNetTrainer):
    """nnU-Net's own training over the epochs that a budget of time buys."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["BUDGET_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["BUDGET_ITERATIONS"])
        self.num_val_iterations_per_epoch = 1

    def perform_actual_validation(self, save_probabilities=False):
        pass  # on the training cases, with fold `all`
'''


def environment(folder: Path) -> Path:
    """Make a virtual environment with nnU-Net, and return its folder of programs."""
    programs = folder / "bin"
    if not (programs / "nnUNetv2_train").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        place = subprocess.run(
            [programs / "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            check=True,
            capture_output=True,
            text=True,
        )
        own = Path(place.stdout.strip())
        (own / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        # Else pip takes the newest torch instead of the one that is here.
        torch = f"torch=={version('torch').split('+')[0]}"
        subprocess.run([programs / "pip", "install", "--quiet", VERSION, torch], check=True)
        variants = own / "nnunetv2" / "training" / "nnUNetTrainer" / "variants"
        (variants / "budget.py").write_text(TRAINER)
    return programs


def write_dataset(hospitals: Sequence[Path], raw: Path) -> dict[str, list[str]]:
    """Write the hospitals' cases as nnU-Net's raw data, and return the test cases by hospital."""
    target, tested, trained = raw / DATASET, {}, 0
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for hospital in hospitals:
        with (hospital / "cases.csv").open() as file:
            for row in csv.DictReader(file):
                if row["split"] not in ("train", "test"):
                    continue
                end = "Tr" if row["split"] == "train" else "Ts"
                trained += end == "Tr"
                if end == "Ts":
                    tested.setdefault(hospital.name, []).append(row["case"])
                for kind, name in (("image", f"{row['case']}_0000"), ("label", row["case"])):
                    volume = nibabel.as_closest_canonical(nibabel.load(hospital / row[kind]))
                    nibabel.save(volume, target / f"{kind}s{end}" / f"{name}.nii.gz")
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": trained,
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(about))
    return tested


def dice(predicted: np.ndarray, reference: np.ndarray, number: int) -> float:
    """Return the Dice of one class; each case here has every class."""
    one, other = predicted == number, reference == number
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def epochs_within(seconds: float, trial_s: float) -> int:
    """Return the epochs of ITERATIONS steps and one of validation that fit, by a trial of TRIAL and one."""
    return max(1, int(seconds / (trial_s / (TRIAL + 1) * (ITERATIONS + 1))))


def run(hospitals: Sequence[Path], folder: Path, minutes: float) -> dict[str, dict[str, list[float]]]:
    """Train nnU-Net for some minutes, and return the test cases' Dice by hospital and structure."""
    programs = environment(folder / "environment")
    places = {f"nnUNet_{name}": folder / name for name in ("raw", "preprocessed", "results")}
    tested = write_dataset(hospitals, places["nnUNet_raw"])

    def call(program: str, *words: str, epochs: int = 1, iterations: int = TRIAL) -> str:
        settings = {name: str(place) for name, place in places.items()}
        settings |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1"}
        settings |= {"BUDGET_EPOCHS": str(epochs), "BUDGET_ITERATIONS": str(iterations)}
        done = subprocess.run(
            [programs / program, *words], env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise SystemExit(f"{program} failed:\n{done.stdout[-3000:]}")
        return done.stdout

    device = ("-device", "cuda" if _has_gpu() else "cpu")
    trainer = ("-tr", "nnUNetTrainerBudget")
    call("nnUNetv2_plan_and_preprocess", "-d", "501", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    words = ("501", "3d_fullres", "all", *trainer, *device)
    trial = call("nnUNetv2_train", *words)
    (trial_s,) = re.findall(r"Epoch time: ([\d.]+) s", trial)
    epochs = epochs_within(60 * minutes, float(trial_s))
    print(f"nnU-Net: {epochs} epochs of {ITERATIONS} steps in {minutes:g} minutes", flush=True)
    call("nnUNetv2_train", *words, epochs=epochs, iterations=ITERATIONS)
    source, found = places["nnUNet_raw"] / DATASET, folder / "found"
    call(
        "nnUNetv2_predict", "-i", str(source / "imagesTs"), "-o", str(found), "-d", "501", "-c", "3d_fullres",
        "-f", "all", *trainer, *device, "-npp", "1", "-nps", "1",
    )  # fmt: skip
    scores: dict[str, dict[str, list[float]]] = {}
    for site, cases in tested.items():
        for case in cases:
            pair = (found / f"{case}.nii.gz", source / "labelsTs" / f"{case}.nii.gz")
            predicted, reference = (np.asarray(nibabel.load(path).dataobj).round() for path in pair)
            for number, structure in enumerate(("anterior", "posterior"), start=1):
                of_site = scores.setdefault(site, {}).setdefault(structure, [])
                of_site.append(dice(predicted, reference, number))
    return scores


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
