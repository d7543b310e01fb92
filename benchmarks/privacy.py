"""Measure what privacy costs: Dice against epsilon, and time per round, for each privacy mechanism.

    python benchmarks/privacy.py                                 # quickstart and tabular
    MEDFED_REAL_DATA=... python benchmarks/privacy.py            # and hippocampus
    python benchmarks/privacy.py --only quickstart --rows "no privacy;dp_sgd, epsilon 8"
    python benchmarks/privacy.py --only quickstart --timing      # times three rounds of each mechanism

Short: `--only tabular` takes two minutes and `--only quickstart --timing` three; all rows take hours.

Each study is trained without privacy with a suitable budget (BUDGET in the script), and under each mechanism
at three epsilons and delta 1e-5, with the changes that a practitioner would make (CHANGES). Under `dp_sgd`,
each step uses all of a hospital's patients, because the noise shrinks with their number; under `client_dp`
and `distributed_dp` the clip is small, because the noise grows with it. The noise also grows with the square
root of the number of weights, so the rows `public start` begin with a model trained by another hospital (the
quickstart's held-out one, regarded as public), and train and exchange only its last block. One more row shows
the study's own settings without privacy. Dice (or AUROC) is that of the final model on the validation cases,
averaged over hospitals. hippocampus is the study of benchmarks/hippocampus.py at 2 mm. CPU seconds per round
cover all four hospitals and the hub, training included; the median omits the first round, which also loads
images. CPU seconds vary less than wall time on a busy machine. kB is the size of one hospital's update.
With --timing torch has one thread: with more, helpers that wait for the next operation spin, and the time
that they spin is counted as CPU seconds though a round ends earlier by it.

A row that is trained or timed alone replaces only itself in RESULTS-privacy.md; text below
the tables is kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfed.pipeline import measure_models
from medfed.pipeline import train as run
from medfed.runs.progress import Progress
from medfed.runs.rounds import RoundReport
from medfed.study.reading import read_study

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
RESULTS = HERE / "RESULTS-privacy.md"
SITES = ("north", "east", "south", "west")

# The rows of a study's table, with the privacy mechanism of each.
NONE = "no privacy"
OWN = "its own settings, no privacy"
PUBLIC = "public start"
UNTRAINED = f"{PUBLIC}, as it is"
NOISED: dict[str, dict[str, Any]] = {
    "dp_sgd": {"kind": "dp_sgd"},
    "client_dp at the hub": {"kind": "client_dp", "where": "hub"},
    "client_dp at the sites": {"kind": "client_dp", "where": "site"},
    "distributed_dp": {"kind": "distributed_dp"},
}
PRIVATE = {
    f"{name}, epsilon {epsilon}": {**mechanism, "epsilon": epsilon, "scores": "send"}
    for name, mechanism in NOISED.items()
    for epsilon in (8, 3, 1)
}
ROWS: dict[str, dict[str, Any]] = {
    NONE: {"kind": "none"},
    **PRIVATE,
    "secure_sum": {"kind": "secure_sum"},
    "ckks": {"kind": "ckks"},
    UNTRAINED: {"kind": "none"},
    f"{PUBLIC}, {NONE}": {"kind": "none"},
    **{f"{PUBLIC}, {name}": privacy for name, privacy in PRIVATE.items()},
    OWN: {"kind": "none"},
}
COLUMNS = ("epsilon spent", "noise multiplier", "score", "CPU s per round", "kB per update")

# A secure sum needs three sites; here all four answer in every round.
QUICK = ["evaluation.local_models=false", "evaluation.draws=2", "held_out={}", "sampling.minimum=3"]
# The training settings of each study, unless CHANGES overrides them.
BUDGET = {
    "quickstart": [
        "network={kind: unet, channels: [8, 16]}",
        "data.spacing_mm=[6, 6, 6]",
        "data.patch=[16, 16, 16]",
        "train.rounds=8",
        "train.epochs=3",
        "train.batch=4",
        "train.optimiser={kind: adamw, lr: 0.02}",
    ],
    "hippocampus": [
        "network={kind: unet, channels: [8, 16, 32]}",
        "data.spacing_mm=[2, 2, 2]",
        "data.patch=[20, 28, 20]",
        "train.rounds=5",
        "train.epochs=2",
        "train.batch=4",
        "train.optimiser={kind: adamw, lr: 0.01}",
    ],
    # Logistic regression with columns scaled the same way at every hospital, because DP-SGD does not protect
    # a hospital's own means.
    "tabular": [
        "train.batch=64",
        "train.rounds=20",
        "train.epochs=3",
        "train.optimiser={kind: adam, lr: 0.1}",
        "data.missing=drop",
        "data.standardise=fixed",
        "data.centre={age: 55, blood_pressure: 130, cholesterol: 245, heart_rate: 150, angina: 0.3, "
        "st_depression: 1, vessels: 0.7}",
        "data.scale={age: 9, blood_pressure: 18, cholesterol: 50, heart_rate: 23, angina: 0.5, "
        "st_depression: 1, vessels: 1}",
    ],
}
# Changes to the training and to the mechanism's own settings. A step of dp_sgd uses all patients.
CHANGES: dict[str, dict[str, tuple[list[str], dict[str, Any]]]] = {
    "quickstart": {
        "dp_sgd": (["train.batch=16", "train.clip=null", "train.optimiser={kind: adam, lr: 0.01}"], {}),
        "client_dp": ([], {"clip": 0.1}),
        "distributed_dp": ([], {"clip": 0.1}),
    },
    "hippocampus": {
        "dp_sgd": (
            ["train.batch=48", "train.epochs=4", "train.clip=null", "train.optimiser={kind: adam, lr: 0.01}"],
            {},
        ),
        "client_dp": ([], {"clip": 0.1}),
        "distributed_dp": ([], {"clip": 0.1}),
    },
}
# From a public start: train only the last block, in small steps.
LAST_BLOCK = ["train.only=['2']", "train.clip=null", "train.optimiser={kind: adam, lr: 0.003}"]
LAST_BLOCK_CLIP = 0.01


@dataclass
class Clock(Progress):
    """Record the CPU time at the end of each round."""

    rounds: list[float] = field(default_factory=list)

    def round(self, report: RoundReport) -> None:
        self.rounds.append(time.process_time())


def trained(study: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train a study and return its validation score, CPU seconds per round and epsilon spent."""
    shutil.rmtree(folder, ignore_errors=True)
    # Only training is timed and scored; a report of each run would take longer than the
    # small runs themselves.
    replaced = measure_models.measure_all, measure_models.write_gallery, run.report_run
    measure_models.measure_all = lambda *_, **__: ([], {})  # type: ignore[assignment]
    measure_models.write_gallery = run.report_run = lambda *_, **__: None  # type: ignore[assignment]
    read, clock = read_study(CONFIGS / f"{study}.yaml", overrides), Clock()
    try:
        run.train(read, out=folder, progress=clock)
    finally:
        measure_models.measure_all, measure_models.write_gallery, run.report_run = replaced
    scores: dict[str, float] = {}
    sent: dict[str, float] = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["status"] == "merged":
            sent[entry["site"]] = entry["bytes_up"]
        score = entry["scalars"].get("val/dice", entry["scalars"].get("val/auroc"))
        if score is not None:
            scores[entry["site"]] = score
    privacy = json.loads((folder / "run.json").read_text())["privacy"]
    spent = [site["epsilon"] for site in privacy.get("sites", {}).values()]
    # The last report holds the final scores and is not a round of training.
    between = np.diff(clock.rounds[: read.train.rounds])
    return {
        "score": float(np.mean(list(scores.values()))) if scores else float("nan"),
        "seconds": float(np.median(between)) if len(between) else float("nan"),
        "kilobytes": max(sent.values()) / 1000,
        "epsilon": max(spent, default=None),  # type: ignore[type-var]
        "noise": max(
            (m["noise_multiplier"] for site in privacy.get("sites", {}).values() for m in site["mechanisms"]),
            default=None,
        ),
    }


def places(study: str, folder: Path) -> list[str]:
    """Return the overrides that locate a study's hospitals; those of hippocampus are created first."""
    if study != "hippocampus":
        return []
    made = folder / "hippocampus-sites"
    command = [sys.executable, str(HERE / "hippocampus.py"), "--only-make", "--folder", str(made)]
    subprocess.run(command, check=True)
    return [f"sites.{site}={(made / site).resolve()}" for site in SITES]


def public_start(study: str, folder: Path) -> Path:
    """Return a checkpoint of the study's model, trained on the held-out hospital as a public one."""
    kept = folder / f"{study}-public.ckpt"
    if kept.exists():
        return kept
    source = HERE.parent / "sample_data" / "university"
    public = shutil.copytree(source, folder / "public", dirs_exist_ok=True)
    # All its patients are for testing; here five of six train, and the sixth validates.
    patients = sorted({row["patient"] for row in csv.DictReader((source / "cases.csv").open())})
    with (source / "cases.csv").open() as given, (public / "cases.csv").open("w", newline="") as dealt:
        rows = csv.DictReader(given)
        out = csv.DictWriter(dealt, list(rows.fieldnames or []))
        out.writeheader()
        for found in rows:
            out.writerow({**found, "split": "val" if patients.index(found["patient"]) % 6 == 0 else "train"})
    alone = [f"sites={{university: {public}}}", "sampling.minimum=1", "held_out={}", "train.epochs=2"]
    trained(study, [*BUDGET[study], *alone, "evaluation.local_models=false"], folder / "public-run")
    shutil.copy(folder / "public-run" / "checkpoints" / "federated.ckpt", kept)
    return kept


def settings(study: str, name: str, folder: Path) -> list[str]:
    """Return the study-file overrides of a row of its table."""
    if name == OWN:
        return ["privacy={kind: none}"]
    privacy = ROWS[name]
    changed, own = CHANGES.get(study, {}).get(privacy["kind"], ([], {}))
    found = [*BUDGET[study], *changed]
    if name.startswith(PUBLIC):
        found += [f"start={public_start(study, folder)}", *LAST_BLOCK]
        own = {"clip": LAST_BLOCK_CLIP} if own else {}
    if name == UNTRAINED:  # a step too small to change the weights, so that the untrained score is recorded
        found += ["train.rounds=1", "train.epochs=1", "train.optimiser={kind: sgd, lr: 1e-12}"]
    return [*found, f"privacy={json.dumps({**privacy, **own})}"]


def row(study: str, name: str, where: Sequence[str], folder: Path, rounds: int | None) -> dict[str, str]:
    """Train one row of a study's table and return the cells that it fills.

    With `rounds`, only that many rounds are trained and only the time cells are returned.
    """
    few = [] if rounds is None else [f"train.rounds={rounds}"]
    found = trained(study, [*settings(study, name, folder), *few, *QUICK, *where], folder / "run")
    times = {"CPU s per round": f"{found['seconds']:.2f}", "kB per update": f"{found['kilobytes']:.0f}"}
    if rounds is not None:
        return times
    return {
        "epsilon spent": "none" if found["epsilon"] is None else f"{found['epsilon']:.2f}",
        "noise multiplier": "" if found["noise"] is None else f"{found['noise']:.2f}",
        "score": f"{found['score']:.3f}",
        **({} if name == UNTRAINED else times),
    }


def wanted(study: str, given: str, timing: bool) -> list[str]:
    """Return the selected rows of a study's table."""
    names = list(ROWS)
    if study == "tabular":
        names = [name for name in names if name in (NONE, OWN) or name.startswith("dp_sgd")]
    if study != "quickstart":
        names = [name for name in names if not name.startswith(PUBLIC)]
    if timing:  # epsilon does not affect time
        names = [name for name in names if not name.endswith((" 3", " 1")) and name not in (UNTRAINED, OWN)]
    return [name for name in names if not given or any(part in name for part in given.split(";"))]


def main() -> int:
    """Train all rows, print the tables and write them to RESULTS-privacy.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(BUDGET))
    parser.add_argument("--rows", default="", help="parts of the names of rows, with ; between them")
    parser.add_argument(
        "--timing", action="store_true", help="three rounds of each mechanism, for their time"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    parts = [given.only] if given.only else list(BUDGET)
    if not os.environ.get("MEDFED_REAL_DATA"):
        parts = [part for part in parts if part != "hippocampus"]
    if given.timing:
        torch.set_num_threads(1)
    command = shlex.join(["python", "benchmarks/privacy.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as temporary:
        for study in parts:
            began = time.monotonic()
            where = places(study, Path(temporary))
            for name in wanted(study, given.rows, given.timing):
                cells = row(study, name, where, Path(temporary), 3 if given.timing else None)
                print(f"{study}: {name}: {cells}", flush=True)
                made = (
                    f"`{command}` on {date.today().isoformat()} in {time.monotonic() - began:.0f} s, "
                    f"{os.cpu_count()} cores (load {os.getloadavg()[1]:.0f}), "
                    f"{torch.get_num_threads()} threads"
                )
                # Write after every row, so that an interruption does not lose hours of training.
                write(given.results, study, name, cells, "Timed" if given.timing else "Trained", made)
    return 0


def write(results: Path, study: str, name: str, cells: Mapping[str, str], did: str, made: str) -> None:
    """Replace a row's cells in the results, and the description below its table."""
    tables, notes = read(results)
    tables.setdefault(study, {}).setdefault(name, {}).update(cells)
    notes.setdefault(study, {})[did] = made
    about = " ".join(str(__doc__).split("Each study")[1].split("A row that")[0].split())
    whole = ["# What privacy costs", f"Each study {about}"]
    for part in BUDGET:
        if part not in tables:
            continue
        score = "AUROC" if part == "tabular" else "Dice"
        lines = [" | ".join(["", part, *COLUMNS, ""]).replace("score", score).strip(), "|---" * 6 + "|"]
        for title in ROWS:
            if title in tables[part]:
                found = [tables[part][title].get(column, "") for column in COLUMNS]
                lines.append(" | ".join(["", title, *found, ""]).strip())
        told = [f"{verb} last by {how}." for verb, how in sorted(notes.get(part, {}).items())]
        whole += [f"## {part}", "\n".join(lines), *told]
    # Keep the text that somebody wrote below the tables.
    kept = results.read_text().split("\n## ")[1:] if results.exists() else []
    whole += [f"## {section.strip()}" for section in kept if section.partition("\n")[0] not in BUDGET]
    results.write_text("\n\n".join(whole) + "\n")


def read(results: Path) -> tuple[dict[str, dict[str, dict[str, str]]], dict[str, dict[str, str]]]:
    """Return the stored cells by study, row and column, and the description of each study."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    notes: dict[str, dict[str, str]] = {}
    if not results.exists():
        return tables, notes
    for section in results.read_text().split("\n## ")[1:]:
        study, _, body = section.partition("\n")
        for line in body.splitlines():
            parts = [part.strip() for part in line.strip("|").split("|")]
            if line.startswith("|") and parts[0] in ROWS:
                tables.setdefault(study, {})[parts[0]] = dict(zip(COLUMNS, parts[1:], strict=False))
            verb, found, how = line.partition(" last by ")
            if found:
                notes.setdefault(study, {})[verb] = how.removesuffix(".")
    return tables, notes


if __name__ == "__main__":
    sys.exit(main())
