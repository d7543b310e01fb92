"""What helps four hospitals with ten labelled patients each: four starts at one budget of training.

    MEDFED_REAL_DATA=... OMP_NUM_THREADS=1 python benchmarks/small_hospitals.py
    MEDFED_REAL_DATA=... OMP_NUM_THREADS=1 python benchmarks/small_hospitals.py --rounds 2
    MEDFED_REAL_DATA=... OMP_NUM_THREADS=1 python benchmarks/small_hospitals.py --pretrain-rounds 40

The hospitals and their scanners are those of benchmarks/hippocampus.py (180 real MR volumes of the Medical
Segmentation Decathlon's Task04). Ten training patients of each hospital are labelled; of its other training
patients only the images are there. All segmentations train equally long, with the same settings and seed:

    scratch      from random weights
    pretrained   from `task: {kind: pretrain}` over the four hospitals, on all their training images
    public       from a model of another structure: the whole hippocampus, learnt from north's other patients
                 with their labels, as if north had published them
    partial      from random weights; east and west have drawn the anterior part only (`task.labelled`)
    two          from random weights; north and south alone, which is what is left without partial labels
    all labels   from random weights, with the labels of all training patients, and as many steps: what more
                 labels would give

Dice is that of the test patients of north and south, the mean over patients. The script writes only to
--folder.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hippocampus import SITES, make, place
from real_data import real_data

from medfed.evaluation.rows import FEDERATED

LABELLED = 10
STRUCTURES = ("anterior", "posterior")
CLASSES = ["background", *STRUCTURES]
# Of these every run has the test patients with both parts: with partial labels the others draw one alone.
MEASURED = ("north", "south")
# In 2 mm voxels, so that all runs take minutes on one core.
SHARED: dict[str, Any] = {
    "network": {"kind": "unet", "channels": [8, 16, 32]},
    "data": {
        "kind": "images",
        "spacing_mm": [2, 2, 2],
        "patch": [20, 28, 20],
        "normalise": {"kind": "percentile"},
        "augment": {"flip": 0, "rotate": 0, "intensity": 0.3, "noise": 0.15},
    },
    "evaluation": {"local_models": False, "pooled_model": False, "robustness": False, "draws": 100},
}
# Of one hospital in one round: the ten labelled patients four times, in batches of two.
STEPS = 20
LAYERS = {"path": "", "anew": ["head"]}


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a hospital's cases.csv, with absolute paths."""
    with (folder / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row | {key: str((folder / row[key]).resolve()) for key in ("image", "label")} for row in rows]


def write_rows(folder: Path, rows: Iterable[dict[str, str]], columns: tuple[str, ...]) -> str:
    """Write a hospital's cases.csv with these columns alone, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(folder.resolve())


def divide(full: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Write each hospital's labelled cases, its images without labels, and all; return folders by set, site.

    A set of labelled cases keeps the validation and test patients; that of images has no test patient.
    """
    with_label = ("case", "patient", "image", "label", "split")
    without = ("case", "patient", "image", "split")
    sets: dict[str, dict[str, str]] = {"labelled": {}, "images": {}, "all": {}, "public": {}}
    for site in SITES:
        rows = rows_of(full / site)
        training = sorted(
            (row for row in rows if row["split"] == "train"), key=lambda row: place(row["case"])
        )
        kept = [row for row in rows if row["split"] != "train"]
        seen = [row for row in rows if row["split"] != "test"]
        sets["labelled"][site] = write_rows(
            folder / "labelled" / site, [*training[:LABELLED], *kept], with_label
        )
        sets["images"][site] = write_rows(folder / "images" / site, seen, without)
        sets["all"][site] = write_rows(folder / "all" / site, rows, with_label)
        if site == "north":
            others = [*training[LABELLED:], *(row for row in kept if row["split"] == "val")]
            sets["public"][site] = write_rows(folder / "public" / site, others, with_label)
    return sets


def train(folder: Path, name: str, study: dict[str, Any], seed: int) -> Path:
    """Train a study in a folder of its own, unless it was trained before, and return its run folder."""
    out = folder / f"{name}-{seed}"
    if (out / "report.html").exists():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{seed}.yaml"
    file.write_bytes(msgspec.yaml.encode({"name": name.replace(" ", "-"), "seed": seed} | SHARED | study))
    command = [sys.executable, "-m", "medfed.cli", "train", str(file), "--out", str(out)]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    return out


def settings(rounds: int, steps: int | None = STEPS, epochs: int = 1) -> dict[str, Any]:
    """Return the `train` section: as many steps in a round at every hospital, however many cases it has."""
    return {
        "rounds": rounds,
        "epochs": epochs,
        "batch": 2,
        "steps": steps,
        "optimiser": {"kind": "adamw", "lr": 0.004},
        "schedule": {"kind": "cosine"},
        "clip": 5,
    }


def segmentation(sites: dict[str, str], rounds: int, **more: Any) -> dict[str, Any]:
    """Return the study that segments both parts at these hospitals."""
    task = {"kind": "segment", "classes": CLASSES, **more.pop("task", {})}
    return {"task": task, "sites": sites, "train": settings(rounds), **more}


def starts(
    folder: Path, sets: dict[str, dict[str, str]], seed: int, given: argparse.Namespace
) -> dict[str, Path]:
    """Return the runs of one seed, by the name of what they start from."""
    pretraining = {
        "task": {"kind": "pretrain", "masked": 0.6, "block": given.block},
        "sites": sets["images"],
        "train": settings(given.pretrain_rounds),
    }
    # North alone, for as many steps as the pretraining takes at one hospital.
    whole = {
        "task": {"kind": "segment", "classes": ["background", "hippocampus"]},
        "sites": sets["public"],
        "site_overrides": {"north": {"classes": {1: "hippocampus", 2: "hippocampus"}}},
        "train": settings(given.pretrain_rounds),
    }
    labelled, rounds = sets["labelled"], given.rounds
    two = {site: labelled[site] for site in MEASURED}
    drawn = {"labelled": {"east": ["anterior"], "west": ["anterior"]}}
    before = folder / f"before-{given.pretrain_rounds}"
    of_images = LAYERS | {"path": str(train(before, "pretraining", pretraining, seed).resolve())}
    of_public = LAYERS | {"path": str(train(before, "whole hippocampus", whole, seed).resolve())}
    studies = {
        "scratch": segmentation(labelled, rounds),
        "pretrained": segmentation(labelled, rounds, start=of_images),
        "public": segmentation(labelled, rounds, start=of_public),
        "partial": segmentation(labelled, rounds, task=drawn),
        "two": segmentation(two, rounds, held_out={s: labelled[s] for s in ("east", "west")}),
        "all labels": segmentation(sets["all"], rounds),
    }
    # What begins at random is trained once, whatever came before the others.
    after = {name: before if "start" in study else folder for name, study in studies.items()}
    return {
        name: train(after[name] / f"rounds-{rounds}", name, study, seed) for name, study in studies.items()
    }


def dice(run: Path) -> dict[str, float]:
    """Return the mean Dice of each part over the test patients of the hospitals that always draw both."""
    values: dict[str, list[float]] = {structure: [] for structure in STRUCTURES}
    for line in (run / "cases.jsonl").read_text().splitlines():
        row = msgspec.json.decode(line)
        plain = (row["model"], row["split"], row["metric"]) == (FEDERATED, "test", "dice")
        if plain and row["site"] in MEASURED and row["structure"] in values and row["value"] is not None:
            values[row["structure"]].append(row["value"])
    return {structure: float(np.mean(some)) for structure, some in values.items()}


def table(values: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table: each part's mean over the seeds, and the lowest and highest."""
    lines = ["| start | " + " | ".join(STRUCTURES) + " | mean of both |", "|---|---|---|---|"]
    for name, seeds in values.items():
        columns = [[one[structure] for one in seeds] for structure in STRUCTURES]
        columns.append([float(np.mean(list(one.values()))) for one in seeds])
        cells = [f"{np.mean(some):.3f} ({min(some):.3f} to {max(some):.3f})" for some in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Train everything, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/small-hospitals"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pretrain-rounds", type=int, default=12)
    parser.add_argument("--block", type=int, default=5, help="of the pretraining, in voxels per side")
    given = parser.parse_args()
    full = given.folder / "hospitals"
    if not (full / SITES[-1] / "cases.csv").exists():
        make(real_data("hippocampus") / "hippocampus", full)
    sets = divide(full, given.folder)
    values: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        for name, run in starts(given.folder, sets, seed, given).items():
            values.setdefault(name, []).append(dice(run))
        print(table(values), flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} s of processor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
