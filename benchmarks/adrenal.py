"""Classify the shapes of 1,584 adrenal glands over four simulated hospitals, beside a plain loop of MONAI.

    MEDFED_REAL_DATA=... python benchmarks/adrenal.py --minutes 20
    MEDFED_REAL_DATA=... python benchmarks/adrenal.py --only-make

The data are AdrenalMNIST3D in 64 x 64 x 64 voxels (MedMNIST v2: Yang, Sci Data 2023, arXiv:2110.14795, CC BY
4.0) in its own split: 1,188 glands to train on, 98 to validate, 298 to test. They are dealt to four hospitals
by their volume and by chance, so that one hospital has the largest glands and with them most masses. The
study is the one that `medfed new` drafts, with as many rounds as fit into the minutes. The plain loop trains
MONAI's 3-D ResNet-18 (with a first stride of 2, as drafted) by Adam on all training glands, for as long as
the federation trained, and keeps the epoch with the best AUROC on the validation glands. The script writes
only to --folder and --out.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from real_data import real_data

from medfed.evaluation.rows import read_rows

SITES = ("north", "east", "south", "west")
SPLITS = ("train", "val", "test")

Gland = tuple[str, str, np.ndarray, int]


def glands(path: Path) -> list[Gland]:
    """Return name, split, voxels and class of each gland."""
    with np.load(path) as data:
        return [
            (f"{split}{number:04d}", split, image, int(target[0]))
            for split in SPLITS
            for number, (image, target) in enumerate(
                zip(data[f"{split}_images"], data[f"{split}_labels"], strict=True)
            )
        ]


def deal(cases: list[Gland], seed: int = 0) -> dict[str, list[Gland]]:
    """Return each hospital's glands: of each split a quarter, with the larger ones rather in the west."""
    generator, dealt = np.random.default_rng(seed), {site: [] for site in SITES}
    for split in SPLITS:
        own = [case for case in cases if case[1] == split]
        sizes = np.array([np.count_nonzero(case[2]) for case in own], float)
        blurred = sizes / sizes.std() + generator.normal(0, 1, len(own))
        order = np.argsort(blurred)
        rest = order[: -(len(own) // 4)]
        generator.shuffle(rest)
        for site, part in zip(SITES, (*np.array_split(rest, 3), order[-(len(own) // 4) :]), strict=True):
            dealt[site] += [own[index] for index in part]
    return dealt


def make(source: Path, folder: Path) -> None:
    """Write the folders of the four hospitals."""
    for site, own in deal(glands(source)).items():
        target = folder / site
        target.mkdir(parents=True, exist_ok=True)
        with (target / "cases.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["case", "patient", "image", "target", "split"])
            for name, split, voxels, mass in own:
                path = target / f"{name}.nii.gz"
                if not path.exists():
                    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
                lines.writerow([name, name, path.name, mass, split])


def round_seconds(run: Path) -> dict[int, float]:
    """Return how long each round took, until its last hospital's update was there."""
    seconds: dict[int, float] = {}
    for line in map(json.loads, (run / "rounds.jsonl").read_text().splitlines()):
        seconds[line["round"]] = max(seconds.get(line["round"], 0.0), line["seconds"])
    return seconds


def federated(folder: Path, out: Path, minutes: float) -> tuple[float, float, float, str]:
    """Return AUROC and accuracy on the test glands, the seconds of all rounds, and what was trained."""
    study = out.with_name(f"{out.name}.yaml")
    study.unlink(missing_ok=True)
    study.parent.mkdir(parents=True, exist_ok=True)
    medfed = [sys.executable, "-m", "medfed.cli"]
    subprocess.run([*medfed, "new", str(study), *(str(folder / site) for site in SITES)], check=True)
    off = ("evaluation.local_models=false", "evaluation.pooled_model=false", "evaluation.robustness=false")
    train = [*medfed, "train", str(study), *(word for one in off for word in ("--set", one))]
    timed = out.with_name(f"{out.name}-timed")
    subprocess.run([*train, "--set", "train.rounds=2", "--out", str(timed)], check=True)
    # The second round: the first one also reads the images.
    rounds = max(2, int(minutes * 60 / round_seconds(timed)[2]))
    subprocess.run([*train, "--set", f"train.rounds={rounds}", "--out", str(out)], check=True)
    spent = sum(seconds for number, seconds in round_seconds(out).items() if number <= rounds)
    found = {
        row.metric: row.value
        for row in read_rows(out / "rows.jsonl")
        if (row.model, row.site, row.split, row.group, row.against)
        == ("federated", "all", "test", None, None)
    }
    return float(found["auroc"]), float(found["accuracy"]), spent, f"{rounds} rounds of the drafted study"


def plain(source: Path, seconds: float, seed: int = 0) -> tuple[float, float, str]:
    """Return AUROC and accuracy on the test glands of a plain loop over all, and its epochs."""
    import torch
    from monai.networks.nets import resnet18
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(seed)
    cases = glands(source)

    def tensors(split: str) -> tuple[Any, Any]:
        own = [case for case in cases if case[1] == split]
        images = torch.from_numpy(np.stack([case[2] for case in own])).float()[:, None]
        return images, torch.tensor([case[3] for case in own])

    (images, targets), validation, test = (tensors(split) for split in SPLITS)
    network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)

    def scores(data: tuple[Any, Any]) -> tuple[float, float]:
        network.eval()
        with torch.no_grad():
            odds = torch.cat([network(part).softmax(1)[:, 1] for part in data[0].split(32)])
        network.train()
        return float(roc_auc_score(data[1], odds)), float(((odds > 0.5) == data[1]).float().mean())

    end, epochs, best, kept = time.monotonic() + seconds, 0, 0.0, (0.0, 0.0)
    network.train()
    while time.monotonic() < end:
        for part in torch.randperm(len(images)).split(32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(images[part]), targets[part]).backward()
            optimiser.step()
            if time.monotonic() >= end:
                break
        epochs += 1
        if (now := scores(validation)[0]) > best:
            best, kept = now, scores(test)
    return *kept, f"{epochs} epochs"


def main() -> int:
    """Make the hospitals, train both, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/adrenal-sites"))
    parser.add_argument("--out", type=Path, default=Path("runs/adrenal"))
    parser.add_argument("--only-make", action="store_true")
    parser.add_argument("--minutes", type=float, default=20, help="that each way may train")
    given = parser.parse_args()
    real = real_data("adrenalmnist3d_64")
    source = real / "adrenalmnist3d_64" / "adrenalmnist3d_64.npz"
    make(source, given.folder)
    if given.only_make:
        return 0
    auroc, accuracy, seconds, what = federated(given.folder, given.out, given.minutes)
    rows = [("medfed, four hospitals", auroc, accuracy, f"{what}, {seconds:.0f} s")]
    auroc, accuracy, what = plain(source, seconds)
    rows.append(("plain loop, pooled", auroc, accuracy, f"{what}, {seconds:.0f} s"))
    print("\n| model | AUROC | accuracy | training |\n|---|---|---|---|")
    for name, auroc, accuracy, what in rows:
        print(f"| {name} | {auroc:.3f} | {accuracy:.3f} | {what} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
