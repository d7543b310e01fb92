"""What privacy costs: Dice against epsilon, and the time of a round under each mechanism of medfed/privacy.

    python benchmarks/privacy.py                                        # quickstart, and each mechanism's time
    MEDFED_REAL_DATA=... python benchmarks/privacy.py                   # and hippocampus
    python benchmarks/privacy.py --only quickstart --epsilons none,8

Two studies, each without privacy and with DP-SGD for every patient at delta 1e-5. Under DP-SGD the noise grows with the
root of the number of weights and shrinks with that of patients, so both are trained with a small U-Net (1,700 weights)
and all of a hospital's patients in a step; the first line of a study is the same small network without privacy, and one
more says what the study's own settings reach. Dice is that of the final model on the hospitals' validation cases, the
mean over hospitals. hippocampus is the study of benchmarks/hippocampus.py at 2 mm.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from medfed import kinds, run
from medfed.study import read_study

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
RESULTS = HERE / "RESULTS-privacy.md"
SITES = ("north", "east", "south", "west")

SMALL = ["network={kind: unet, channels: [4, 8], residual_units: 0, norm: group}", "train.clip=null"]
QUICK = ["evaluation.local_models=false", "evaluation.draws=2", "held_out={}"]
# What each study is trained with, private or not: one step an epoch, on all of a hospital's patients.
BUDGET = {
    "quickstart": ["train.batch=16", "train.rounds=10", "train.epochs=6", "train.optimiser={kind: adam, lr: 0.03}"],
    "hippocampus": [
        "train.batch=48", "train.rounds=10", "train.epochs=6", "train.optimiser={kind: adam, lr: 0.02}",
        "data.spacing_mm=[2, 2, 2]", "data.patch=[20, 28, 20]", "data.augment=none",
    ],
}  # fmt: skip


def trained(study: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return a study's final validation Dice, seconds a round and epsilon spent, having trained it."""
    shutil.rmtree(folder, ignore_errors=True)
    # Only training is timed and scored here; a report of each run would take longer than the small runs themselves.
    kept = run._measure, run.report
    run._measure, run.report = lambda *_: None, lambda where: None  # type: ignore[assignment]
    try:
        run.train(read_study(CONFIGS / f"{study}.yaml", overrides), out=folder)
    finally:
        run._measure, run.report = kept
    rounds: dict[int, float] = {}
    scores: dict[str, float] = {}
    sent: dict[str, float] = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["status"] == "merged":
            rounds[entry["round"]] = max(rounds.get(entry["round"], 0.0), entry["seconds"])
            sent[entry["site"]] = entry["bytes_up"]
        scores[entry["site"]] = entry["scalars"].get("val/dice", scores.get(entry["site"], float("nan")))
    privacy = json.loads((folder / "run.json").read_text())["privacy"]
    spent = [site["epsilon"] for site in privacy.get("sites", {}).values()]
    # The slowest site's answer ends a round. The first round of a process also loads libraries and images.
    later = [seconds for number, seconds in rounds.items() if number > 1] or list(rounds.values())
    return {
        "dice": float(np.mean(list(scores.values()))),
        "seconds": float(np.median(later)),
        "kilobytes": max(sent.values()) / 1000,
        "epsilon": max(spent, default=None),  # type: ignore[type-var]
        "noise": max(
            (m["noise_multiplier"] for site in privacy.get("sites", {}).values() for m in site["mechanisms"]),
            default=None,
        ),
    }


def places(study: str, folder: Path) -> list[str]:
    """Return the overrides that say where a study's hospitals are, having made those of hippocampus."""
    if study != "hippocampus":
        return []
    made = folder / "hippocampus-sites"
    command = [sys.executable, str(HERE / "hippocampus.py"), "--only-make", "--folder", str(made)]
    subprocess.run(command, check=True)
    return [f"sites.{site}={(made / site).resolve()}" for site in SITES]


def trade_off(study: str, epsilons: Sequence[str], folder: Path) -> list[str]:
    """Return the lines of a study's table, printed as they are found."""
    where = places(study, folder)
    lines = []

    def row(name: str, privacy: str, overrides: Sequence[str]) -> None:
        found = trained(study, [*overrides, *QUICK, *where, f"privacy={privacy}"], folder / "run")
        spent = "none" if found["epsilon"] is None else f"{found['epsilon']:.2f}"
        noise = "" if found["noise"] is None else f"{found['noise']:.2f}"
        lines.append(f"| {name} | {spent} | {noise} | {found['dice']:.3f} | {found['seconds']:.2f} |")
        print(lines[-1], flush=True)

    row(f"{study}, its own settings", "{kind: none}", [])
    for epsilon in epsilons:
        kind = "{kind: none}" if epsilon == "none" else f"{{kind: dp_sgd, epsilon: {epsilon}, scores: send}}"
        row(f"{study}, small network", kind, [*SMALL, *BUDGET[study]])
    return lines


def mechanisms(folder: Path) -> list[str]:
    """Return a line for each mechanism of the registry: three rounds of quickstart's own study under it."""
    lines = []
    few = ["train.rounds=3", "train.epochs=1", *QUICK]
    for name, record in kinds.kinds("privacy").items():
        settings = {"kind": name, **record.example}  # type: ignore[attr-defined]
        variants = [settings]
        if name == "client_dp":
            variants = [{**settings, "where": "hub"}, {**settings, "where": "site"}]
        for one in variants:
            told = ", ".join(f"{key}: {value}" for key, value in one.items())
            try:
                found = trained("quickstart", [*few, f"privacy={json.dumps(one)}"], folder / "run")
            except (
                Exception
            ) as error:  # a mechanism may need what this study does not give it; the table says so
                lines.append(f"| {told} | {type(error).__name__}: {str(error)[:80]} | |")
            else:
                lines.append(f"| {told} | {found['seconds']:.2f} | {found['kilobytes']:.0f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> int:
    """Train, print the tables and write them to RESULTS-privacy.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epsilons", default="none,8,3,1")
    parser.add_argument("--only", choices=["quickstart", "hippocampus", "mechanisms"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    epsilons = given.epsilons.split(",")
    began = time.monotonic()
    studies = ["quickstart"] + (["hippocampus"] if os.environ.get("MEDFED_REAL_DATA") else [])
    parts = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = [line for study in studies if given.only in (None, study)
                for line in trade_off(study, epsilons, folder)]  # fmt: skip
        if rows:
            head = (
                "| study | epsilon spent | noise multiplier | Dice | seconds a round |\n|---|---|---|---|---|"
            )
            parts.append(f"## Dice against epsilon\n\n{head}\n" + "\n".join(rows))
        if given.only in (None, "mechanisms"):
            head = "| privacy | seconds a round | kB sent by a site |\n|---|---|---|"
            parts.append(
                f"## A round of quickstart under each mechanism\n\n{head}\n" + "\n".join(mechanisms(folder))
            )
    command = " ".join(["python", "benchmarks/privacy.py", *sys.argv[1:]])
    text = (
        f"# What privacy costs\n\nMade by `{command}` on {date.today().isoformat()} in "
        f"{time.monotonic() - began:.0f} s, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads. "
        f"{' '.join(str(__doc__).split('Two studies')[1].split()).join(['Two studies', ''])}\n\n"
        + "\n\n".join(parts)
    )
    given.results.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
