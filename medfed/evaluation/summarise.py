"""A run folder's case rows become its rows, its histograms and its CSV, with the study's own settings.

This is the only reader of `cases.jsonl`: what it writes beside it (`rows.jsonl`, `rows.csv`,
`curves.jsonl`) is about groups of patients and may leave the hospital. At the hub the rows are those that the
hospitals told it (`reported.jsonl`), and of cases that were evaluated there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfed.errors import RunError
from medfed.runs.rounds import last_round, read_rounds
from medfed.evaluation import aggregate, comparisons, histograms, robustness, rows
from medfed.evaluation.intervals import DRAWS


def read_study(run: Path) -> dict[str, Any]:
    """Return the study as the run resolved it, or nothing where it was not written."""
    import yaml

    for name in ("study.json", "study.yaml"):
        if (run / name).is_file():
            text = (run / name).read_text(encoding="utf-8")
            try:
                found = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
            except (ValueError, yaml.YAMLError) as error:
                raise RunError(f"{name}: cannot be read: {type(error).__name__}; restore the file") from error
            return found if isinstance(found, dict) else {}
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, or nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path.name}: not JSON: {error}; restore the file") from error
    return found if isinstance(found, dict) else {}


def smallest_group(study: Mapping[str, Any]) -> int:
    """Return how many patients a group needs to be shown."""
    return int((study.get("evaluation") or {}).get("smallest_group", aggregate.MINIMUM))


def summarise(run: Path) -> list[rows.Row]:
    """Write rows.jsonl, rows.csv and curves.jsonl from cases.jsonl and reported.jsonl, and return the rows.

    Of a hospital whose cases are here its own report is not needed.

    Raises:
        RunError: a file of the run is damaged.
        DataError: case rows that contradict each other.
    """
    about, study = read_json(run / "run.json"), read_study(run)
    every = rows.read_cases(run / "cases.jsonl") if (run / "cases.jsonl").is_file() else []
    reported = rows.read_rows(run / "reported.jsonl") if (run / "reported.jsonl").is_file() else []
    settings = study.get("evaluation") or {}
    classes = [str(name) for name in about.get("classes") or (study.get("task") or {}).get("classes") or ()]
    temperatures: dict[str, float] = {}
    if settings.get("temperature"):
        every, temperatures = aggregate.cooled(every, classes)
    cases = rows.as_they_are(every)
    number = last_round(read_rounds(run / "rounds.jsonl"))
    minimum = smallest_group(study)
    options: dict[str, Any] = {
        "round": number,
        "seed": int(about.get("seed") or 0),
        "classes": classes,
        "held_out": [str(site) for site in about.get("held_out") or ()],
        "minimum": minimum,
        "draws": int(settings.get("draws", DRAWS)),
    }
    found = aggregate.aggregate(cases, **options)
    found += comparisons.compare(cases, **options)
    found += comparisons.subgroups(cases, **options)
    found += robustness.robustness(every, **options)
    found += [
        rows.Row(
            round=number,
            site=rows.ALL_SITES,
            split="val",
            model=model,
            metric="temperature",
            value=value,
            n=len({(c.site, c.patient) for c in cases if c.model == model and c.split == "val"}),
            method="most likely on validation patients (Guo 2017); every probability here is at it",
        )
        for model, value in sorted(temperatures.items())
    ]
    here = {case.site for case in every}
    found += [row for row in reported if row.site not in here]
    rows.write(run / "rows.jsonl", found)
    rows.write_csv(run / "rows.csv", found)
    counts = aggregate.histograms(cases, round=number, classes=classes, minimum=minimum)
    histograms.write(run / "curves.jsonl", counts)
    return found
