"""Run folders with known numbers, as a simulation writes them, for the report to be made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medfed.evaluation import rows
from medfed.evaluation import summarise as summary
from medfed.evaluation.rows import CaseRow

SITES = ("north", "south", "east", "coast")
HELD_OUT = "west"
# How good each model is at home, and elsewhere.
SKILL = {"federated": (0.82, 0.81), "pooled": (0.83, 0.82), "untrained": (0.08, 0.08)}


def skill(model: str, site: str) -> float:
    home, away = SKILL.get(model, (0.80, 0.60))
    return home if model.endswith(f":{site}") or ":" not in model else away


def models(pooled: bool = True) -> list[str]:
    return ["federated", *(["pooled"] if pooled else []), "untrained", *(f"local:{site}" for site in SITES)]


def attributes(generator: np.random.Generator, site: str) -> dict[str, str]:
    return {
        "sex": str(generator.choice(["F", "M"])),
        "age_band": str(generator.choice(["40-59", "60-79", "80+"], p=[0.4, 0.5, 0.1])),
        "scanner": {"north": "A", "south": "A", "east": "B"}.get(site, "C"),
    }


def segmentation_cases(seed: int = 0, patients: int = 16) -> list[CaseRow]:
    generator = np.random.default_rng(seed)
    result = []
    for site in (*SITES, HELD_OUT):
        for split, number in (("val", patients // 2), ("test", patients)):
            for index in range(number):
                who, about = f"{site}-{split}-{index}", attributes(generator, site)
                hard = generator.normal(0, 0.08)
                for model in models():
                    dice = float(np.clip(skill(model, site) + hard + generator.normal(0, 0.03), 0, 0.99))
                    missed = dice < 0.1 and generator.random() < 0.5
                    values: dict[str, tuple[float | None, str | None]] = {
                        "dice": (0.0 if missed else dice, "missed" if missed else None),
                        "nsd_voxel_2mm": (0.0 if missed else dice**0.5, "missed" if missed else None),
                        "hd95_mm": (None if missed else 2 + 30 * (1 - dice), "missed" if missed else None),
                        "msd_mm": (None if missed else 0.4 + 6 * (1 - dice), "missed" if missed else None),
                        "volume_difference_ml": (float(generator.normal(-0.4, 2.0)), None),
                        "lesion_sensitivity": (float(np.clip(dice + 0.1, 0, 1)), None),
                        "false_positives": (float(generator.poisson(0.4)), None),
                    }
                    for metric, (value, note) in values.items():
                        result.append(
                            CaseRow(
                                model=model,
                                site=site,
                                split=split,
                                case=f"case-{who}",
                                patient=f"patient-{who}",
                                metric=metric,
                                structure="lesion",
                                value=value,
                                note=note,
                                attributes=about,
                            )
                        )
    return result


def classification_cases(
    seed: int = 0, patients: int = 60, classes: tuple[str, ...] = ("healthy", "disease")
) -> list[CaseRow]:
    generator = np.random.default_rng(seed)
    result = []
    for site in (*SITES, HELD_OUT):
        for split, number in (("val", patients // 2), ("test", patients)):
            for index in range(number):
                who, about = f"{site}-{split}-{index}", attributes(generator, site)
                target = int(generator.integers(0, len(classes)))
                noise = generator.normal(0, 1, len(classes))
                for model in models():
                    strength = 3.2 * max(skill(model, site) - 0.35, 0)
                    logits = noise + generator.normal(0, 0.4, len(classes))
                    logits[target] += strength
                    p = np.exp(logits) / np.exp(logits).sum()
                    for place, name in enumerate(classes):
                        result.append(
                            CaseRow(
                                model=model,
                                site=site,
                                split=split,
                                case=f"case-{who}",
                                patient=f"patient-{who}",
                                metric="probability",
                                structure=name,
                                value=float(p[place]),
                                target=float(place == target),
                                attributes=about,
                            )
                        )
    return result


def write(
    run: Path, task: str = "segment", *, rounds: int = 8, seed: int = 0, patients: int | None = None
) -> Path:
    """Write a finished run's folder and return it."""
    run.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    if task == "segment":
        cases, classes = segmentation_cases(seed, patients or 16), ["lesion"]
        scalar = "val/dice"
    else:
        cases, classes = classification_cases(seed, patients or 60), ["healthy", "disease"]
        scalar = "val/auroc"
    rows.write(run / "cases.jsonl", cases)
    lines = []
    # After the last round every site reports its scores of the final model, in a line that merges nothing.
    for number in range(1, rounds + 2):
        for place, site in enumerate(SITES):
            progress = 1 - np.exp(-number / 2.5)
            status, reason = "merged" if number <= rounds else "reported", ""
            if site == "coast" and number in (3, 4):
                status, reason = "absent", "did not answer before the deadline"
            if site == "east" and number == 5:
                status, reason = "refused", "update of site 'east' for round 5: 'net.0.weight' is not finite"
            line = {"round": number, "site": site, "status": status, "reason": reason}
            if status == "reported":
                line |= {"examples": 0, "seconds": 0.4, "bytes_up": 900, "bytes_down": 0}
                line["scalars"] = {scalar: 0.8}
            if status == "merged":
                loss = 1.1 - 0.8 * progress + 0.03 * place + generator.normal(0, 0.02)
                line |= {
                    "examples": 40 + 12 * place,
                    "seconds": 5.5 + generator.random(),
                    "bytes_up": 1_480_000,
                    "bytes_down": 1_480_000,
                    "scalars": {
                        "train/loss": loss,
                        scalar: 0.1 + 0.72 * progress - 0.02 * place + generator.normal(0, 0.015),
                    },
                }
            lines.append(json.dumps(line))
    (run / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    (run / "run.json").write_text(
        json.dumps(
            {
                "study": "lesions-of-four-hospitals" if task == "segment" else "disease-of-four-hospitals",
                "digest": "sha256:3f1c9a0b7d5e4f2a8c6b1d0e9f7a5b3c",
                "versions": {"medfed": "0.1.0", "torch": "2.13.0", "monai": "1.6.1", "python": "3.11.7"},
                "seed": 7,
                "command": "medfed train configs/quickstart.yaml",
                "hardware": "2 CPU cores, 16 GB",
                "started": "2026-01-05T09:30:00+00:00",
                "seconds": 84.2,
                "task": task,
                "classes": classes,
                "sites": list(SITES),
                "held_out": [HELD_OUT],
                "cases": {site: {"train": 40, "val": 8, "test": 16} for site in SITES}
                | {HELD_OUT: {"train": 0, "val": 3, "test": 16}},
            }
        )
    )
    study = {
        "name": "lesions-of-four-hospitals",
        "task": {"kind": task, "classes": classes},
        "network": {"kind": "unet", "channels": [16, 32, 64]},
        "rule": {"kind": "fedavg"},
        "privacy": {"kind": "none"},
        "evaluation": {"draws": 200, "smallest_group": 5},
        "train": {"rounds": rounds, "local_epochs": 2, "batch_size": 2, "learning_rate": 0.001},
        "data": {"spacing_mm": [2.0, 2.0, 2.0], "patch": [48, 48, 48], "normalise": {"kind": "zscore"}},
    }
    (run / "study.yaml").write_text(json.dumps(study))  # YAML contains JSON
    (run / "audit.jsonl").write_text("")
    summary.summarise(run)
    return run
