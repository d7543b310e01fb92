"""Federated hippocampus segmentation on 180 real MR volumes, dealt to four hospitals with a scanner each.

    MEDFED_REAL_DATA=... python benchmarks/hippocampus.py            # makes the hospitals, trains, prints a table
    MEDFED_REAL_DATA=... python benchmarks/hippocampus.py --only-make

The volumes are those of the Medical Segmentation Decathlon's Task04 (Antonelli, Nat Commun 2022, CC BY-SA 4.0), one
vendor's crops. Hospitals are simulated from them: north keeps its volumes as they are; east has another contrast curve
and noise; south stores them turned and mirrored (another orientation, the same patients' space) under a shading; west
gets the smallest hippocampi. Nothing is written but into --folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np

SITES = ("north", "east", "south", "west")
# The share of each hospital's patients that validates.
VALIDATION = 0.25


def place(name: str) -> float:
    """Return a case's place in [0, 1), from its name alone."""
    return int.from_bytes(hashlib.sha256(f"hippocampus/{name}".encode()).digest()[:8], "big") / 2**64


def deal(cases: list[tuple[str, Path, Path]]) -> dict[str, list[tuple[str, Path, Path]]]:
    """Return the cases of each site: a quarter each, the smallest hippocampi to the west."""
    volume = {name: int((np.asarray(nibabel.load(label).dataobj) > 0).sum()) for name, _, label in cases}
    ranked = sorted(cases, key=lambda case: volume[case[0]])
    quarter = len(cases) // 4
    rest = sorted(ranked[quarter:], key=lambda case: place(case[0]))
    return {"west": ranked[:quarter]} | {
        site: rest[number * quarter : (number + 1) * quarter]
        for number, site in enumerate(("north", "east", "south"))
    }


def scan(site: str, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return an image as the site's scanner would show it, in arbitrary units."""
    low, high = np.percentile(image, [0.5, 99.5])
    unit = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    if site == "east":
        return 4000 * unit**1.6 + generator.normal(0, 120, image.shape)
    if site == "south":
        x = np.linspace(-1, 1, image.shape[0])[:, None, None]
        z = np.linspace(-1, 1, image.shape[2])[None, None, :]
        return 300 * unit * (1 + 0.35 * x - 0.25 * z)
    return image


def make(source: Path, folder: Path) -> None:
    """Write the four hospitals' folders."""
    with (source / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [row["case"] for row in rows]
    cases = [
        (name, source / "images" / f"{name}.nii.gz", source / "labels" / f"{name}.nii.gz") for name in names
    ]
    for site, mine in deal(cases).items():
        target = folder / site
        target.mkdir(parents=True, exist_ok=True)
        lines = [["case", "patient", "image", "label", "split"]]
        ranked = sorted(mine, key=lambda case: place("split " + case[0]))
        validation = {name for name, _, _ in ranked[: round(VALIDATION * len(ranked))]}
        for name, image_path, label_path in mine:
            image, label = nibabel.load(image_path), nibabel.load(label_path)
            generator = np.random.default_rng(int(place(name) * 2**32))
            voxels = scan(site, np.asarray(image.dataobj, np.float32), generator).astype(np.float32)
            pair = (
                nibabel.Nifti1Image(voxels, image.affine),
                nibabel.Nifti1Image(np.asarray(label.dataobj), label.affine),
            )
            for part, kind in zip(pair, ("image", "label"), strict=True):
                if site == "south":
                    to = nibabel.orientations.axcodes2ornt("PIL")
                    part = part.as_reoriented(
                        nibabel.orientations.ornt_transform(nibabel.io_orientation(part.affine), to)
                    )
                nibabel.save(part, target / f"{name}-{kind}.nii.gz")
            lines.append([name, name, f"{name}-image.nii.gz", f"{name}-label.nii.gz",
                          "val" if name in validation else "train"])  # fmt: skip
        with (target / "cases.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def main() -> int:
    """Make the hospitals, train, and print each one's validation Dice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/hippocampus-sites"))
    parser.add_argument("--out", type=Path, default=Path("runs/hippocampus"))
    parser.add_argument("--only-make", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    real = os.environ.get("MEDFED_REAL_DATA")
    if not real:
        print("set MEDFED_REAL_DATA to the folder that holds hippocampus/", file=sys.stderr)
        return 2
    make(Path(real) / "hippocampus", given.folder)
    if given.only_make:
        return 0
    began = time.monotonic()
    overrides = [f"sites.{site}={(given.folder / site).resolve()}" for site in SITES] + given.overrides
    flags = [part for override in overrides for part in ("--set", override)]
    command = [
        str(Path(sys.executable).parent / "medfed"),
        "train",
        "configs/hippocampus.yaml",
        "--out",
        str(given.out),
    ]
    subprocess.run([*command, *flags], check=True)
    seconds = time.monotonic() - began
    scores: dict[str, dict] = {}
    for line in (given.out / "rounds.jsonl").read_text().splitlines():
        entry = json.loads(line)
        scores[entry["site"]] = entry["scalars"] or scores.get(entry["site"], {})
    print(f"\n{'hospital':<10}{'Dice':>8}{'anterior':>10}{'posterior':>11}")
    for site, found in sorted(scores.items()):
        parts = (found["val/dice"], found["val/dice/anterior"], found["val/dice/posterior"])
        print(f"{site:<10}{parts[0]:>8.3f}{parts[1]:>10.3f}{parts[2]:>11.3f}")
    print(
        f"{'mean':<10}{np.mean([found['val/dice'] for found in scores.values()]):>8.3f}   in {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
