"""Measure what DP-SGD learns from a public start: which part to train, with how many copies, averaged or not.

    MEDFED_REAL_DATA=... python benchmarks/private_start.py --choose   # each configuration once
    MEDFED_REAL_DATA=... python benchmarks/private_start.py            # the chosen ones, three seeds
    python benchmarks/private_start.py --only quickstart

One hospital's patients are regarded as public: they train the start and take no part in the federation. That
is north of the hippocampus study (benchmarks/hippocampus.py, at 2 mm), whose scanner no other hospital has,
and the held-out hospital of the quickstart, at 6 mm. The others train from it under `dp_sgd` at delta 1e-5; a
step uses all of a hospital's patients. Configurations are compared at epsilon 8 with seed 0, by the mean Dice
of the hospitals' validation patients. The chosen one is trained with three seeds, each from a start of its
own, at epsilon 8, 3 and 1; beside it the whole network and the same part are trained without privacy. These
figures are the hospitals' mean Dice on test patients, with a 95 % t-interval over the seeds; so is the
difference from the whole network without privacy, seed by seed.

Every finished run is kept in --folder and not repeated; seeds may be trained side by side with --seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import re
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from privacy import SITES, places  # the file beside this one

from medfed.evaluation.rows import read_cases
from medfed.pipeline import measure_models
from medfed.pipeline import train as run
from medfed.study.reading import read_study

HERE = Path(__file__).resolve().parent
CONFIGS, SAMPLES = HERE.parent / "configs", HERE.parent / "sample_data"
SEEDS = (0, 1, 2)
EPSILONS = (8, 3, 1)
# The 97.5 % quantile of Student's t with two degrees of freedom, for three seeds.
T_OF_THREE = 4.303
CLIP = 0.01
EMA = "{kind: ema, decay: 0.5}"
# The hospital whose patients are regarded as public.
PUBLIC = {"quickstart": "university", "hippocampus": "north"}

ALL = ["evaluation.local_models=false", "evaluation.draws=2", "evaluation.smallest_group=1", "held_out={}"]
SIZE = {
    "quickstart": [
        "network={kind: unet, channels: [8, 16], norm: group}",
        "data.spacing_mm=[6, 6, 6]",
        "data.patch=[16, 16, 16]",
        "data.augment={flip: 0, rotate: 0, intensity: 0.5, noise: 0.3}",
    ],
    "hippocampus": [
        "network={kind: unet, channels: [8, 16, 32], norm: group}",
        "data.spacing_mm=[2, 2, 2]",
        "data.patch=[20, 28, 20]",
        "data.augment={flip: 0, rotate: 0, intensity: 0.5, noise: 0.3}",
    ],
}
START = {
    "quickstart": ["train.rounds=20", "train.epochs=5", "train.optimiser={kind: adamw, lr: 0.02}"],
    "hippocampus": ["train.rounds=10", "train.epochs=3", "train.optimiser={kind: adamw, lr: 0.01}"],
}
ALONE = ["sampling.minimum=1", "train.batch=4", "train.clip=5"]
# One step too small to change a weight, so that the start's own score is recorded.
UNCHANGED = ["train.rounds=1", "train.optimiser={kind: sgd, lr: 1e-12}"]
# Without privacy, from the start.
PLAIN = ["train.batch=4", "train.clip=5", "train.rounds=5", "train.epochs=4"]
WHOLE = [*PLAIN, "train.optimiser={kind: adamw, lr: 0.003}"]
PARTS = {
    "head": ["train.only=[head]"],
    "norms": ["train.only=[norm]"],
    "norms, head": ["train.only=[norm, head]"],
    "LoRA, norms": ["train.lora={rank: 1, also: [norm]}"],
    "LoRA, norms, head": ["train.lora={rank: 1, also: [norm, head]}"],
}


UNTRAINED = "public start, as it is"
NO_PRIVACY = "no privacy, whole network"
SAME_PART = "no privacy, same part"


@dataclass(frozen=True)
class Configuration:
    """How a part is trained under privacy: steps of all patients, `rounds` times `epochs` of them."""

    part: str
    rate: float
    copies: int = 1
    rounds: int = 5
    epochs: int = 4
    average: str = "1"

    def overrides(self, epsilon: float) -> list[str]:
        """Return the study-file overrides; epsilon 0 is the same part, trained without privacy."""
        own = [*PARTS[self.part], f"train.optimiser={{kind: adam, lr: {self.rate}}}"]
        if not epsilon:
            return [*PLAIN, *own]
        # Far below any patient's gradient: Adam makes up for the length, and all patients count alike.
        privacy = {"kind": "dp_sgd", "epsilon": epsilon, "clip": CLIP, "augmentations": self.copies}
        steps = [f"train.rounds={self.rounds}", f"train.epochs={self.epochs}", "train.batch=64"]
        privacy["scores"] = "send"
        return [*own, *steps, f"train.average={self.average}", f"privacy={json.dumps(privacy)}"]


def trained(study: str, overrides: Sequence[str], folder: Path) -> tuple[float, float]:
    """Train a study and return the mean Dice over hospitals of validation and of test patients."""
    shutil.rmtree(folder, ignore_errors=True)
    # A report of each run would take longer than the small runs themselves.
    replaced = measure_models.write_gallery, run.report_run
    measure_models.write_gallery = run.report_run = lambda *_, **__: None  # type: ignore[assignment]
    try:
        run.train(read_study(CONFIGS / f"{study}.yaml", [*SIZE[study], *ALL, *overrides]), out=folder)
    finally:
        measure_models.write_gallery, run.report_run = replaced
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    validation = {
        line["site"]: line["scalars"]["val/dice"] for line in lines if "val/dice" in line["scalars"]
    }
    test: dict[str, list[float]] = {}
    for row in read_cases(folder / "cases.jsonl", "federated"):
        if row.metric == "dice" and row.value is not None and row.condition is None:
            test.setdefault(row.site, []).append(row.value)
    means = [statistics.fmean(values) for values in test.values()]
    return statistics.fmean(validation.values()), statistics.fmean(means)


LORA = Configuration("LoRA, norms", 0.01)
# What --choose compares, and what it led to.
LOOKED_AT = {
    "hippocampus": (
        Configuration("head", 0.003),
        Configuration("norms, head", 0.003),
        Configuration("LoRA, norms, head", 0.003),
        Configuration("norms", 0.01),
        LORA,
        Configuration("LoRA, norms", 0.03),
        Configuration("norms", 0.03),
        replace(LORA, rate=0.03, average=EMA),
        replace(LORA, rate=0.03, copies=4),
        replace(LORA, rate=0.02, rounds=10),
    ),
    "quickstart": (
        Configuration("head", 0.003),
        Configuration("norms, head", 0.003),
        Configuration("norms", 0.01),
        LORA,
        Configuration("LoRA, norms", 0.03),
        replace(LORA, copies=4),
        replace(LORA, average=EMA),
    ),
}
CHOSEN = {"hippocampus": replace(LORA, rate=0.03, average=EMA), "quickstart": replace(LORA, average=EMA)}


def public_start(study: str, seed: int, folder: Path) -> Path:
    """Return a checkpoint of the study's model, trained on the public hospital's patients alone."""
    kept = folder / f"{study}-{seed}.ckpt"
    if not kept.exists():
        public = folder / "hippocampus-sites" / PUBLIC["hippocampus"]
        if study == "quickstart":
            public = dealt(SAMPLES / PUBLIC[study], folder / "public")
        alone = [f"sites={{{PUBLIC[study]}: {public}}}", f"seed={seed}"]
        trained(study, [*START[study], *ALONE, *alone], folder / f"{study}-start-{seed}")
        shutil.copy(folder / f"{study}-start-{seed}" / "checkpoints" / "federated.ckpt", kept)
    return kept


def dealt(source: Path, folder: Path) -> Path:
    """Copy a hospital's folder, whose patients are all for testing, with four of six for training instead."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    with (source / "cases.csv").open() as given:
        rows = list(csv.DictReader(given))
    patients = sorted({row["patient"] for row in rows})
    with (folder / "cases.csv").open("w", newline="") as made:
        out = csv.DictWriter(made, list(rows[0]))
        out.writeheader()
        for row in rows:
            place = patients.index(row["patient"]) % 6
            out.writerow({**row, "split": {0: "val", 1: "test"}.get(place, "train")})
    return folder


def hospitals(study: str, folder: Path) -> list[str]:
    """Return the overrides that name the hospitals whose patients are private."""
    if study == "quickstart":
        return ["sampling.minimum=4"]
    folders = {site: folder / "hippocampus-sites" / site for site in SITES if site != PUBLIC[study]}
    named = ", ".join(f"{site}: {place}" for site, place in folders.items())
    return [f"sites={{{named}}}", "sampling.minimum=3"]


def score(study: str, seed: int, name: str, overrides: Sequence[str], folder: Path) -> tuple[float, float]:
    """Return what `trained` does, of a named run from its seed's public start; a finished one is read."""
    done = folder / "scores" / f"{study}-{seed}-{re.sub('[^a-z0-9.]+', '-', name.lower())}.json"
    if not done.exists():
        began = time.process_time()
        start = [f"start={public_start(study, seed, folder)}", f"seed={seed}", *hospitals(study, folder)]
        found = trained(study, [*start, *overrides], folder / f"run-{study}-{seed}")
        done.parent.mkdir(exist_ok=True)
        done.write_text(json.dumps(found))
        seconds = time.process_time() - began
        print(f"{study}, seed {seed}: {name}: validation {found[0]:.3f}, {seconds:.0f} CPU s", flush=True)
    validation, test = json.loads(done.read_text())
    return validation, test


def runs_of(study: str) -> dict[str, list[str]]:
    """Return the overrides of each row of a study's table."""
    chosen = CHOSEN[study]
    return {
        UNTRAINED: UNCHANGED,
        NO_PRIVACY: WHOLE,
        SAME_PART: chosen.overrides(0),
        **{f"dp_sgd, epsilon {epsilon}": chosen.overrides(epsilon) for epsilon in EPSILONS},
    }


def interval(values: Sequence[float]) -> str:
    """Return the mean of three values with its 95 % t-interval."""
    mean = statistics.fmean(values)
    half = T_OF_THREE * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def choose(study: str, folder: Path) -> str:
    """Return a Markdown table of the configurations by their Dice on validation patients."""
    lines = [f"| {study}, epsilon 8 | rate | copies | average | Dice, validation |", "|---" * 5 + "|"]
    rows = [(score(study, 0, str(one), one.overrides(8), folder)[0], one) for one in LOOKED_AT[study]]
    for dice, one in sorted(rows, key=lambda row: -row[0]):
        lines.append(f"| {one.part} | {one.rate} | {one.copies} | {one.average} | {dice:.3f} |")
    return "\n".join(lines)


def compare(study: str, seeds: Sequence[int], folder: Path) -> str:
    """Return a Markdown table of the chosen configuration and what it is compared with, on test patients."""
    found = {name: [score(study, seed, name, overrides, folder)[1] for seed in seeds]
             for name, overrides in runs_of(study).items()}  # fmt: skip
    if len(seeds) < len(SEEDS):
        return ""
    lines = [f"| {study} | Dice, test | less than without privacy by |", "|---" * 3 + "|"]
    for name, values in found.items():
        lost = [best - value for best, value in zip(found[NO_PRIVACY], values, strict=True)]
        lines.append(f"| {name} | {interval(values)} | {'' if name == NO_PRIVACY else interval(lost)} |")
    return "\n".join(lines)


def main() -> int:
    """Train what is asked for, and print a table of each study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(SIZE))
    parser.add_argument("--choose", action="store_true", help="compare configurations on validation patients")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--folder", type=Path, default=Path("runs/private-start"))
    given = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for study in [given.only] if given.only else list(SIZE):
        if study == "hippocampus" and not (folder / "hippocampus-sites").exists():
            places(study, folder)
        print(choose(study, folder) if given.choose else compare(study, given.seeds, folder), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
