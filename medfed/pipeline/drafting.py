"""`medfed new`: a first study file from hospitals' folders, with settings that follow from what is in them.

What to learn is read from the folders (labels to segment, a class to tell, a column of a table), the modality
from the headers, sizes and spacing from the volumes. Everything is written down with its reason, to be
changed by hand: the file is the study, and nothing is decided behind it. For segmentation, spacing, patch and
normalisation are left to `data.plan`, which takes them from all hospitals' fingerprints before the first
round (as nnU-Net does from one data
set: Isensee, Nature Methods 2021).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from medfed.data.csv_table import read_rows
from medfed.data.layouts._layout import visible
from medfed.data.preflight.preflight import Preflight
from medfed.data.preflight.preflight import check as looked_at
from medfed.data.preflight.summary import UNKNOWN_MODALITY
from medfed.errors import DataError, StudyError
from medfed.study.reading import read_study

Task = Literal["segment", "classify", "tabular", "survival"]

# The most voxels of a patch: training then takes about 2 GB, and a step a few seconds on two cores.
VOXELS = 64**3
# A table's column of more different words than this is free text, or names, and no category.
MOST_WORDS = 12
# Columns of a table that say who and where a row is, and nothing to learn from.
NO_FEATURE = ("patient", "case", "id", "split")


@dataclass(frozen=True)
class Draft:
    """A study file's text, and what was seen while it was made: a line a hospital, and what
    needs a person's eye.
    """

    text: str
    seen: tuple[str, ...]
    doubts: tuple[str, ...]


def draft(
    name: str,
    sites: Mapping[str, Path],
    held_out: Mapping[str, Path],
    *,
    task: Task | None = None,
    target: str | None = None,
    time: str | None = None,
    event: str | None = None,
    tell: Callable[[int, int], None] = lambda done, all_: None,
) -> Draft:
    """Return a study over these hospitals' folders, or CSV files, whole and checked.

    Args:
        name: the study's.
        sites: the hospitals that train, each with its folder or CSV file.
        held_out: those that only measure.
        task: what to learn; from the folders if None.
        target: of tables, the column with the class.
        time, event: of tables, the columns of a survival study instead.
        tell: called with how many of a folder's cases are read, of how many.

    Raises:
        DataError: a folder can't be used, or the hospitals' folders do not fit each other.
        StudyError: it can't be told what to learn.
    """
    everywhere = {**sites, **held_out}
    tables = {site: path for site, path in everywhere.items() if _table_of(path) is not None}
    if tables and len(tables) < len(everywhere):
        others = ", ".join(sorted(set(everywhere) - set(tables)))
        raise DataError(
            f"{', '.join(sorted(tables))}: tables, and {others}: images; a study has one or the other"
        )
    if tables:
        body, seen, doubts = _of_tables(sites, held_out, target, time, event)
    else:
        body, seen, doubts = _of_images(sites, held_out, task, tell)
    minimum = (
        ""
        if len(sites) == 1
        else f"\nsampling: {{minimum: {max(2, -(-len(sites) // 2))}}}     # fewer answers stop it\n"
    )
    text = (
        f"# {name}: written by `medfed new`; every setting may be changed, `medfed kinds` lists what there is.\n"
        f"#   medfed train {name}.yaml\n"
        f"name: {name}\nseed: 0\n\n{body}\nrule: {{kind: fedavg}}\n{minimum}\n"
        + _places("sites", sites)
        + (("\n" + _places("held_out", held_out)) if held_out else "")
    )
    return Draft(text, tuple(seen), tuple(doubts))


def write(path: Path, made: Draft) -> None:
    """Write a draft where no file is, and read it as the study it says it is.

    Raises:
        StudyError: if there is a file already.
    """
    if path.exists():
        raise StudyError(f"{path}: there is a file already; give another name, or move it away")
    path.write_text(made.text, encoding="utf-8")
    try:
        read_study(path)
    except Exception:
        path.unlink()
        raise


def named(places: Sequence[str]) -> dict[str, Path]:
    """Return folders by the names of their hospitals: NAME=FOLDER, or a folder, whose own name is taken.

    Raises:
        StudyError: if two have one name, or a name can't be made.
    """
    found: dict[str, Path] = {}
    for place in places:
        name, sign, folder = place.partition("=")
        path = Path(folder if sign else place)
        if not sign:
            name = re.sub(r"[^a-z0-9_-]+", "-", path.resolve().name.removesuffix(".csv").lower()).strip("-_")
        if not name or not name[0].isalpha():
            raise StudyError(f"{place}: makes no name for a hospital; name it, such as north={place}")
        if name in found:
            raise StudyError(f"two hospitals would be called '{name}'; name them, such as north={place}")
        found[name] = path
    return found


def _places(key: str, places: Mapping[str, Path]) -> str:
    plain = {site: str(path.resolve()) for site, path in places.items()}
    return yaml.safe_dump({key: plain}, sort_keys=False, allow_unicode=True, width=1000)


# ---------------------------------------------------------------------------------------------- images


def _of_images(
    sites: Mapping[str, Path],
    held_out: Mapping[str, Path],
    task: Task | None,
    tell: Callable[[int, int], None],
) -> tuple[str, list[str], list[str]]:
    found: dict[str, Preflight] = {}
    for site, path in {**sites, **held_out}.items():
        try:
            found[site] = looked_at(path, progress=tell)
        except DataError as error:
            raise DataError(f"{site}: {error}") from None
        if not found[site].facts["read"]:
            raise DataError(
                f"{site}: none of its {found[site].facts['cases']} cases can be read; `medfed check` on its folder says why"
            )
    seen = [f"{site}: {_seen(one)}" for site, one in found.items()]
    doubts = [
        f"{site}: {count} kinds of trouble in its folder; `medfed check` says which and what to do"
        for site, one in found.items()
        if (count := sum(problem.severity == "error" for problem in one.problems))
    ]
    task = task or _task_of(found)
    channels = {number for one in found.values() for number in one.facts["channels"]}
    if len(channels) > 1:
        raise DataError(
            f"the hospitals' images have {' and '.join(sorted(channels))} channels; a study has one number for all"
        )
    if task == "segment":
        body, more = _segment({site: found[site] for site in sites}, channels.pop())
    else:
        body, more = _classify({site: found[site] for site in sites}, channels.pop())
    return body, seen, doubts + more


def _seen(one: Preflight) -> str:
    facts = one.facts
    told = f"{facts['layout']}, {facts['cases']} cases of {facts['patients']} patients"
    if facts["labels"]:
        told += f", {facts['labels']} with a label"
    if facts["targets"]:
        told += f", {sum(facts['targets'].values())} with a class"
    return f"{told}; {', '.join(facts['modality'])}"


def _task_of(found: Mapping[str, Preflight]) -> Task:
    """Return what the folders can teach: a label to draw comes before a class to tell.

    Raises:
        StudyError: if some hospitals have neither, or none has what the others have.
    """
    for task, needed in (("segment", "labels"), ("classify", "targets")):
        lacking = [site for site, one in found.items() if not one.facts[needed]]
        if not lacking:
            return task  # type: ignore[return-value]
    without = {n: [s for s, one in found.items() if not one.facts[n]] for n in ("labels", "targets")}
    raise StudyError(
        f"it can't be told what to learn: without a label in any case are {', '.join(without['labels'])}; without a class, "
        f"{', '.join(without['targets'])}; add the column 'label' (a mask's path) or 'target' (0, 1, ...) to cases.csv"
    )


def _modality(found: Mapping[str, Preflight]) -> tuple[bool, list[str]]:
    """Return whether all images are CT in HU, and what a person should look at where it isn't clear."""
    kinds = {kind for one in found.values() for kind in one.facts["modality"]}
    untold = kinds & {UNKNOWN_MODALITY}
    if kinds == {"CT"}:
        return True, []
    # NIfTI says no modality; air at -1,000 is of HU.
    lows = {
        site: one.facts["intensity"]["least"][0]
        for site, one in found.items()
        if one.facts["intensity"] and set(one.facts["modality"]) <= untold
    }
    if kinds - untold <= {"CT"} and lows and all(low < -500 for low in lows.values()):
        return True, ["NIfTI says no modality; all images hold values below -500 and were taken for CT in HU"]
    if len(kinds - untold) > 1:
        return False, [
            f"{' and '.join(sorted(kinds - untold))} in one study: each image is normalised by its own scale"
        ]
    if kinds == untold:
        return False, ["NIfTI says no modality; the images were taken for MR, or anything but CT in HU"]
    return False, []


def _segment(found: Mapping[str, Preflight], channels: str) -> tuple[str, list[str]]:
    ct, doubts = _modality(found)
    names, more = _structures(found)
    fewest = min(10, *(one.facts["splits"].get("train", 0) for one in found.values()))
    grid = "hu" if ct else "relative"
    body = f"""task:
  kind: segment
  classes: {_flow(names)}

network:
  kind: unet
  channels: [16, 32, 64, 128]

data:
  kind: images
  channels: {channels}
  plan:                         # spacing, patch and normalisation from all hospitals' fingerprints, before round 1
    grid: {grid:<21} # {"CT: Hounsfield units" if ct else "not CT: each image's own scale"}
    voxels: {VOXELS:<19} # the most of a patch; more for a large GPU, fewer for a small machine
    fewest: {max(fewest, 1):<19} # a hospital with fewer training patients gives no fingerprint
  augment: {{flip: 0}}            # left and right are not alike in a body; a chance of flips helps where they are

train:
  rounds: 30
  epochs: 2                     # a hospital's own epochs between two merges
  batch: 2
  optimiser: {{kind: adamw, lr: 0.001}}
  schedule: {{kind: cosine}}
  clip: 5
"""
    return body, doubts + more


def _structures(found: Mapping[str, Preflight]) -> tuple[list[str], list[str]]:
    """Return the names of all classes, background first, and which hospital lacks which."""
    most = max((int(number) for one in found.values() for number in one.facts["classes"]), default=0)
    if most == 0:
        raise DataError(
            "every label is empty: no voxel of any case is drawn; give labels of 1, 2, ... for structures"
        )
    names, doubts = ["background"], []
    for number in range(1, most + 1):
        told = {one.facts["classes"].get(str(number), {}).get("name", "") for one in found.values()} - {""}
        if len(told) > 1:
            raise DataError(
                f"label {number} is called {' and '.join(sorted(told))} at different hospitals; the same number must mean "
                "the same structure everywhere"
            )
        names.append(told.pop() if told else f"structure{number}")
        lacking = [site for site, one in found.items() if str(number) not in one.facts["classes"]]
        if lacking:
            doubts.append(
                f"'{names[-1]}' (label {number}) is drawn at none of the cases of {', '.join(lacking)}; where it is there and "
                "only not drawn, say so by task.labelled"
            )
    return names, doubts


# A classifier sees the whole image in a cube of at most this many voxels a side.
WHOLE = 64


def _classify(found: Mapping[str, Preflight], channels: str) -> tuple[str, list[str]]:
    classes, doubts = _targets(found)
    extents, finest = [], []
    for one in found.values():
        size, spacing = one.facts["size"], one.facts["spacing_mm"]
        extents.append([n * mm for n, mm in zip(size["median"], spacing["median"], strict=True)])
        finest.append(spacing["median"])
    largest = [max(axis) for axis in zip(*extents, strict=True)]
    fine = [min(axis) for axis in zip(*finest, strict=True)]
    spacing_mm = [float(f"{max(mm, extent / WHOLE):.3g}") for mm, extent in zip(fine, largest, strict=True)]
    patch = [max(16, -(-round(extent / mm) // 8) * 8) for mm, extent in zip(spacing_mm, largest, strict=True)]
    body = f"""task:
  kind: classify
  classes: {_flow(classes)}

network:
  kind: resnet
  depth: 10
  norm: group                   # batch norm's statistics differ too much from hospital to hospital

data:
  kind: images
  channels: {channels}
  spacing_mm: {_flow(spacing_mm)}   # the largest hospital's images in at most {WHOLE} voxels a side
  patch: {_flow(patch)}
  normalise: {{kind: percentile}}
  augment: {{flip: 0}}            # left and right are not alike in a body; a chance of flips helps where they are

train:
  rounds: 20
  epochs: 2                     # a hospital's own epochs between two merges
  batch: 4
  optimiser: {{kind: adamw, lr: 0.001}}
  schedule: {{kind: cosine}}
"""
    return body, doubts


def _targets(found: Mapping[str, Preflight]) -> tuple[list[str], list[str]]:
    """Return the classes' names, and which hospital has no case of which."""
    most = max(int(target) for one in found.values() for target in one.facts["targets"])
    if most == 0:
        raise DataError("every case is of class 0; a classifier needs at least two classes, 0 and 1")
    doubts = [
        f"{site} has no case of class {number}"
        for number in range(most + 1)
        for site, one in found.items()
        if str(number) not in one.facts["targets"]
    ]
    named = {tuple(one.facts["class_names"]) for one in found.values() if one.facts["class_names"]}
    if len(named) > 1:
        told = " against ".join(", ".join(names) for names in sorted(named))
        raise DataError(f"the hospitals' classes are not the same: {told}; give their folders the same names")
    names = list(named.pop()) if named else []
    return [*names, *(f"class{number}" for number in range(len(names), most + 1))], doubts


def _flow(values: Sequence[Any]) -> str:
    return yaml.safe_dump(list(values), default_flow_style=True, width=1000).strip()


# ---------------------------------------------------------------------------------------------- tables


def _table_of(path: Path) -> Path | None:
    """Return the CSV file that a place is, or is the only thing in; None for a folder of images."""
    if path.is_file():
        return path
    if path.is_dir() and not (path / "cases.csv").exists():
        files = visible(path)
        if len(files) == 1 and files[0].suffix.lower() in (".csv", ".tsv"):
            return files[0]
    return None


def _of_tables(
    sites: Mapping[str, Path],
    held_out: Mapping[str, Path],
    target: str | None,
    time: str | None,
    event: str | None,
) -> tuple[str, list[str], list[str]]:
    target, time, event = (name.lower() if name else None for name in (target, time, event))
    columns = {site: _columns(site, path) for site, path in {**sites, **held_out}.items()}
    first = next(iter(columns.values()))
    shared = [name for name in first if all(name in one for one in columns.values())]
    if (target is None) == (time is None) or (time is None) != (event is None):
        raise StudyError(
            f"it can't be told what to learn from a table: give --target COLUMN, or --time COLUMN and --event COLUMN; all "
            f"hospitals have {', '.join(shared)}"
        )
    answers = [name for name in (target, time, event) if name is not None]
    for name in answers:
        lacking = [site for site, one in columns.items() if name not in one]
        if lacking:
            raise StudyError(
                f"{', '.join(lacking)}: no column '{name}'; all hospitals have {', '.join(shared)}"
            )
    doubts: list[str] = []
    classes: list[str] = []
    if target is not None:
        cells = {cell for one in columns.values() for cell in one[target] if cell}
        if not all(cell.isdigit() for cell in cells) or cells == {"0"} or not cells:
            raise StudyError(
                f"column '{target}' holds no classes 0, 1, ...: it has {len(cells)} different values, not all of them whole "
                "numbers from 0; number the classes"
            )
        classes = [f"class{number}" for number in range(max(map(int, cells)) + 1)]
    features, categorical = [], {}
    for name in shared:
        if name in NO_FEATURE or name in answers:
            continue
        cells = {cell for one in columns.values() for cell in one[name] if cell}
        if all(map(_is_number, cells)):
            features.append(name)
        elif len(cells) <= MOST_WORDS:
            features.append(name)
            categorical[name] = sorted(cells)
        else:
            doubts.append(f"column '{name}' holds {len(cells)} different words and was left out")
    some = sorted({name for one in columns.values() for name in one} - set(shared))
    if some:
        doubts.append(f"not at every hospital, and left out: {', '.join(some)}")
    if not features:
        raise StudyError(f"no column is left to learn from: {'; '.join(doubts)}")
    asked = f"  target: {target}\n" if target is not None else f"  time: {time}\n  event: {event}\n"
    words = "".join(f"    {name}: {_flow(found)}\n" for name, found in categorical.items())
    kind = "tabular" if target is not None else "survival"
    body = f"""task:
  kind: {kind}
{f"  classes: {_flow(classes)}" + chr(10) if classes else ""}
network:
  kind: fully_connected
  hidden: [16]                  # [] is a plain regression

data:
  kind: table
{asked}  features: {_flow(features)}
{"  categorical:" + chr(10) + words if words else ""}
train:
  rounds: 20
  epochs: 2                     # a hospital's own epochs between two merges
  batch: 16
  optimiser: {{kind: adam, lr: 0.01}}
"""
    seen = [f"{site}: a table, {len(next(iter(one.values()), []))} rows" for site, one in columns.items()]
    return body, seen, doubts


def _columns(site: str, path: Path) -> dict[str, list[str]]:
    file = _table_of(path)
    assert file is not None
    try:
        rows = [cells for _, cells in read_rows(file, f"{site}'s table")]
    except (OSError, csv.Error):
        raise DataError(
            f"{site}: its table can't be read; give a CSV file with a line of column names"
        ) from None
    if len(rows) < 2:
        raise DataError(f"{site}: its table has no row under the column names")
    return {name: [row[n].strip() for row in rows[1:]] for n, name in enumerate(rows[0])}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
