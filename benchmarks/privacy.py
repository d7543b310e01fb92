"""What privacy costs: Dice against epsilon, and the time of a round under each mechanism of medfed/privacy.

    python benchmarks/privacy.py                                 # quickstart, tabular, and each mechanism's time
    MEDFED_REAL_DATA=... python benchmarks/privacy.py            # and hippocampus
    python benchmarks/privacy.py --only quickstart --epsilons none,8

Each study is trained without privacy and with DP-SGD for every patient at delta 1e-5. Under DP-SGD the noise grows with
the root of the number of weights and shrinks with that of patients, so images are learned by a small U-Net (1,700
weights) from all of a hospital's patients in each step; the line without privacy is the same network and the same steps,
and one more says what the study's own settings reach. Dice (or AUROC) is that of the final model on the hospitals'
validation cases, the mean over hospitals. hippocampus is the study of benchmarks/hippocampus.py at 2 mm.

A part that is run alone replaces its own section of RESULTS-privacy.md.
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
from collections.abc import Iterator, Sequence
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

MECHANISMS = "a round of quickstart under each mechanism"

SMALL = ["network={kind: unet, channels: [4, 8], residual_units: 0, norm: group}", "train.clip=null"]
QUICK = ["evaluation.local_models=false", "evaluation.draws=2", "held_out={}"]
# What each study is trained with, private or not: one step an epoch, on all of a hospital's patients.
BUDGET = {
    "quickstart": ["train.batch=16", "train.rounds=8", "train.epochs=5", "train.optimiser={kind: adam, lr: 0.03}"],
    "hippocampus": [
        "train.batch=48", "train.rounds=10", "train.epochs=6", "train.optimiser={kind: adam, lr: 0.02}",
        "data.spacing_mm=[2, 2, 2]", "data.patch=[20, 28, 20]", "data.augment=none",
    ],
    # Logistic regression on columns scaled alike at every hospital: DP-SGD does not hide what a hospital's own means say.
    "tabular": [
        "train.batch=64", "train.rounds=20", "train.epochs=3", "train.optimiser={kind: adam, lr: 0.1}",
        "data.missing=drop", "data.standardise=fixed",
        "data.centre={age: 55, blood_pressure: 130, cholesterol: 245, heart_rate: 150, angina: 0.3, st_depression: 1, "
        "vessels: 0.7}",
        "data.scale={age: 9, blood_pressure: 18, cholesterol: 50, heart_rate: 23, angina: 0.5, st_depression: 1, vessels: 1}",
    ],
}  # fmt: skip


def trained(study: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return a study's final validation score, seconds a round and epsilon spent, having trained it."""
    shutil.rmtree(folder, ignore_errors=True)
    # Only training is timed and scored here; a report of each run would take longer than the small runs themselves.
    kept = run.measure_all, run.picture, run.report
    run.measure_all = run.picture = run.report = lambda *_, **__: []  # type: ignore[assignment]
    try:
        run.train(read_study(CONFIGS / f"{study}.yaml", overrides), out=folder)
    finally:
        run.measure_all, run.picture, run.report = kept
    rounds: dict[int, float] = {}
    scores: dict[str, float] = {}
    sent: dict[str, float] = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["status"] == "merged":
            rounds[entry["round"]] = max(rounds.get(entry["round"], 0.0), entry["seconds"])
            sent[entry["site"]] = entry["bytes_up"]
        score = entry["scalars"].get("val/dice", entry["scalars"].get("val/auroc"))
        if score is not None:
            scores[entry["site"]] = score
    privacy = json.loads((folder / "run.json").read_text())["privacy"]
    spent = [site["epsilon"] for site in privacy.get("sites", {}).values()]
    # The slowest site's answer ends a round. The first round of a process also loads libraries and images.
    later = [seconds for number, seconds in rounds.items() if number > 1] or list(rounds.values())
    return {
        "score": float(np.mean(list(scores.values()))) if scores else float("nan"),
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


def trade_off(study: str, epsilons: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the lines of a study's table."""
    where = places(study, folder)

    def row(name: str, privacy: str, overrides: Sequence[str]) -> str:
        found = trained(study, [*overrides, *QUICK, *where, f"privacy={privacy}"], folder / "run")
        spent = "none" if found["epsilon"] is None else f"{found['epsilon']:.2f}"
        noise = "" if found["noise"] is None else f"{found['noise']:.2f}"
        return f"| {name} | {spent} | {noise} | {found['score']:.3f} | {found['seconds']:.2f} |"

    for epsilon in epsilons:
        kind = "{kind: none}" if epsilon == "none" else f"{{kind: dp_sgd, epsilon: {epsilon}, scores: send}}"
        name = "no privacy" if epsilon == "none" else f"dp_sgd, epsilon {epsilon}"
        yield row(name, kind, [*(SMALL if study != "tabular" else []), *BUDGET[study]])
    yield row("its own settings, no privacy", "{kind: none}", [])


def mechanisms(folder: Path) -> Iterator[str]:
    """Yield a line for each mechanism of the registry: three rounds of quickstart's own study under it."""
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
                yield f"| {told} | {type(error).__name__}: {str(error)[:80]} | |"
            else:
                yield f"| {told} | {found['seconds']:.2f} | {found['kilobytes']:.0f} |"


def main() -> int:
    """Train, print the tables and write them to RESULTS-privacy.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epsilons", default="none,8,3,1")
    parser.add_argument("--only", choices=[*BUDGET, MECHANISMS])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    parts = [given.only] if given.only else [*BUDGET, MECHANISMS]
    if not os.environ.get("MEDFED_REAL_DATA"):
        parts = [part for part in parts if part != "hippocampus"]
    with tempfile.TemporaryDirectory() as temporary:
        for part in parts:
            began = time.monotonic()
            if part == MECHANISMS:
                head = "| privacy | seconds a round | kB sent by a site |\n|---|---|---|"
                found = mechanisms(Path(temporary))
            else:
                score = "AUROC" if part == "tabular" else "Dice"
                head = f"| {part} | epsilon spent | noise multiplier | {score} | seconds a round |\n|---|---|---|---|---|"
                found = trade_off(part, given.epsilons.split(","), Path(temporary))
            lines: list[str] = []
            command = " ".join(["python", "benchmarks/privacy.py", *sys.argv[1:]])
            for line in found:
                lines.append(line)
                print(line, flush=True)
                made = (
                    f"Made by `{command}` on {date.today().isoformat()} in {time.monotonic() - began:.0f} s, "
                    f"{os.cpu_count()} cores (load {os.getloadavg()[1]:.0f}), "
                    f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads."
                )
                # After every line: hours of training are not lost to a kill.
                write(given.results, part, "\n".join([made, "", head, *lines]))
    return 0


def write(results: Path, part: str, text: str) -> None:
    """Put a part's section into the results, in place of an older one."""
    sections: dict[str, str] = {}
    if results.exists():
        for section in results.read_text().split("\n## ")[1:]:
            title, _, body = section.partition("\n")
            sections[title.strip()] = body.strip()
    sections[part] = text
    about = " ".join(str(__doc__).split("Each study")[1].split("A part that")[0].split())
    whole = ["# What privacy costs", f"Each study {about}"]
    whole += [f"## {name}\n\n{sections[name]}" for name in [*BUDGET, MECHANISMS] if name in sections]
    results.write_text("\n\n".join(whole) + "\n")


if __name__ == "__main__":
    sys.exit(main())
