"""Federated hippocampus segmentation on 180 real MR volumes, split over four simulated hospitals.

    MEDFED_REAL_DATA=... python benchmarks/hippocampus.py  # makes the hospitals, trains, prints a table
    MEDFED_REAL_DATA=... python benchmarks/hippocampus.py --only-make
    MEDFED_REAL_DATA=... python benchmarks/hippocampus.py --set train.rounds=1  # short: four minutes
    MEDFED_REAL_DATA=... python benchmarks/hippocampus.py --minutes 45          # the study that `new` drafts
    MEDFED_REAL_DATA=... python benchmarks/hippocampus.py --minutes 45 --nnunet # and nnU-Net v2 beside it

With --minutes the study is what `medfed new --budget` drafts for that time, without a setting of its own,
and the pooled model is trained beside it; nnU-Net (nnunet.py) trains as long on the cases of all sites.

The volumes are those of the Medical Segmentation Decathlon's Task04 (Antonelli, Nat Commun 2022, CC BY-SA
4.0), cropped, from one vendor. The hospitals differ in their simulated scanners: north keeps its volumes
unchanged; east has a different contrast curve and noise; south stores rotated and mirrored volumes (another
orientation, the same patient space) with a bias field; west has the smallest hippocampi. The script writes
only to --folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
from real_data import real_data

from medfed.evaluation.rows import Row, read_rows

SITES = ("north", "east", "south", "west")
# The fractions of each hospital's patients used for testing and for validation.
TEST, VALIDATION = 0.25, 0.1


def place(name: str) -> float:
    """Return a number in [0, 1) derived from the case's name."""
    return int.from_bytes(hashlib.sha256(f"hippocampus/{name}".encode()).digest()[:8], "big") / 2**64


def deal(cases: list[tuple[str, Path, Path]]) -> dict[str, list[tuple[str, Path, Path]]]:
    """Return the cases of each site, a quarter each, with the smallest hippocampi in the west."""
    volume = {name: int((np.asarray(nibabel.load(label).dataobj) > 0).sum()) for name, _, label in cases}
    ranked = sorted(cases, key=lambda case: volume[case[0]])
    quarter = len(cases) // 4
    rest = sorted(ranked[quarter:], key=lambda case: place(case[0]))
    return {"west": ranked[:quarter]} | {
        site: rest[number * quarter : (number + 1) * quarter]
        for number, site in enumerate(("north", "east", "south"))
    }


def scan(site: str, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return an image as the site's scanner would produce it, in arbitrary units."""
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
    """Write the folders of the four hospitals."""
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
        tested = round(TEST * len(ranked))
        split = dict.fromkeys((name for name, _, _ in ranked), "train")
        split |= dict.fromkeys((name for name, _, _ in ranked[:tested]), "test")
        validates = ranked[tested : tested + round(VALIDATION * len(ranked))]
        split |= dict.fromkeys((name for name, _, _ in validates), "val")
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
            lines.append([name, name, f"{name}-image.nii.gz", f"{name}-label.nii.gz", split[name]])
        with (target / "cases.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def table(rows: list[Row]) -> str:
    """Return a Markdown table of every model's test Dice and 95 % interval at every hospital."""
    whole = [row for row in rows if row.split == "test" and row.group is None and row.against is None]
    sites = [
        site for site in (*SITES, "all") if any(row.site == site and row.metric == "dice" for row in whole)
    ]
    counts = {row.site: row.n for row in whole if row.metric == "patients" and row.model == "federated"}
    lines = ["| model, structure | " + " | ".join(f"{site} ({counts[site]})" for site in sites) + " |"]
    lines.append("|---|" + "---|" * len(sites))
    for model in sorted({row.model for row in whole}):
        for structure in (None, "anterior", "posterior"):
            cells = []
            for site in sites:
                found = [row for row in whole if (row.model, row.site, row.structure, row.metric)
                         == (model, site, structure, "dice")]  # fmt: skip
                cells.append(
                    f"{found[0].value:.3f} ({found[0].low:.3f} to {found[0].high:.3f})"
                    if found and found[0].value is not None and found[0].low is not None
                    else "–"
                )
            lines.append(f"| {model}, {structure or 'mean of both'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drafted(folder: Path, out: Path, minutes: float) -> Path:
    """Return the study file that `medfed new` drafts for this time."""
    study = out.with_name(f"{out.name}-{minutes:g}m.yaml")
    study.unlink(missing_ok=True)
    study.parent.mkdir(parents=True, exist_ok=True)
    folders = [str(folder / site) for site in SITES]
    command = [sys.executable, "-m", "medfed.cli", "new", str(study), *folders, "--budget", f"{minutes:g}m"]
    subprocess.run(command, check=True)
    return study


def nnunet_lines(scores: dict[str, dict[str, list[float]]]) -> str:
    """Return nnU-Net's lines of the table: its mean Dice over the test patients of each site, and of all."""
    lines = []
    for structure in ("anterior", "posterior"):
        each = [scores[site][structure] for site in SITES]
        cells = [f"{np.mean(values):.3f}" for values in (*each, [one for values in each for one in values])]
        lines.append(f"| nnU-Net v2 pooled, {structure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Make the hospitals, train, and print each model's Dice on the test patients."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/hippocampus-sites"))
    parser.add_argument("--out", type=Path, default=Path("runs/hippocampus"))
    parser.add_argument("--only-make", action="store_true")
    parser.add_argument("--minutes", type=float, help="as long as the federation, and the others, may take")
    parser.add_argument("--nnunet", action="store_true", help="also nnU-Net v2, with --minutes")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    real = real_data("hippocampus")
    make(real / "hippocampus", given.folder)
    if given.only_make:
        return 0
    if given.nnunet and not given.minutes:
        parser.error("--nnunet needs --minutes: as long as the federation trains, nnU-Net does, too")
    began = time.monotonic()
    study, more = "configs/hippocampus.yaml", []
    if given.minutes:
        study = str(drafted(given.folder, given.out, given.minutes))
        more = ["task.classes=[background, anterior, posterior]", "evaluation.pooled_model=true"]
    overrides = [f"sites.{site}={(given.folder / site).resolve()}" for site in SITES] + more
    overrides += given.overrides
    flags = [part for override in overrides for part in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "medfed.cli",
        "train",
        study,
        "--out",
        str(given.out),
    ]
    subprocess.run([*command, *flags], check=True)
    seconds = time.monotonic() - began
    print()
    print(table(read_rows(given.out / "rows.jsonl")))
    if given.nnunet:
        from nnunet import run  # the file beside this one

        hospitals = [given.folder / site for site in SITES]
        print(nnunet_lines(run(hospitals, given.out.with_name(f"{given.out.name}-nnunet"), given.minutes)))
    processor_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"in {seconds:.0f} s; {processor_s.ru_utime + processor_s.ru_stime:.0f} s of processor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
