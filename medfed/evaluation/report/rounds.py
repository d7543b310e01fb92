"""What happened over the rounds: scores and losses of every hospital, and who took part."""

from __future__ import annotations

import math
from typing import Any

from medfed.evaluation.metrics import headline_metrics, metric_of
from medfed.evaluation.report import charts
from medfed.evaluation.report.formatting import round_ranges
from medfed.evaluation.report.run import Run
from medfed.files import format_bytes
from medfed.runs.provenance import joined_later
from medfed.runs.rounds import TOOK_PART, RoundLine, last_round
from medfed.study.study import first_on_all

# Losses that are drawn, after the best-ranked headline metric on validation patients.
LOSSES = ("val/loss", "train/loss")
# The statuses of a site whose update is missing from a round.
LOST = ("absent", "refused", "late")


def curves(run: Run, compared: bool = True) -> list[dict[str, Any]]:
    """Return the curves of one validation score and of the losses, one panel per hospital.

    compared: whether each panel shows the other hospitals' curves too.
    """
    logged = {name for line in run.rounds for name in line.scalars}
    scores = [f"val/{metric.name}" for metric in headline_metrics() if f"val/{metric.name}" in logged]
    names = scores[:1] + [name for name in LOSSES if name in logged]
    return [curve for name in names if (curve := _curve(run, name, compared)) is not None]


def _curve(run: Run, name: str, compared: bool) -> dict[str, Any] | None:
    split, short = name.split("/")[0], name.split("/")[-1]
    # A site validates the model that a round begins with, which the round before made; round 0 is untrained.
    shift = 1 if split == "val" else 0
    series: dict[str, list[charts.Point]] = {}
    for line in run.rounds:
        value = line.scalars.get(name)
        if value is not None and math.isfinite(value):
            series.setdefault(line.site, []).append((float(line.round - shift), value))
    if not any(len(points) > 1 for points in series.values()):
        return None
    metric = metric_of(short)
    known = metric.better != "none"
    values = [y for points in series.values() for _, y in points]
    axis = charts.span(values, metric.lowest if known else None, metric.highest, 3)
    numbers = [int(x) for points in series.values() for x, _ in points]
    rounds = (min(numbers), max(numbers))
    lost = {(line.site, line.round - shift) for line in run.rounds if line.status in LOST}
    panels = []
    for site, points in sorted(series.items()):
        present = {int(x) for x, _ in points}
        gaps = [r for r in range(rounds[0], rounds[1] + 1) if r not in present and (site, r) in lost]
        last = _score(points[-1][1])
        title = f"{site}: {name} from {_score(points[0][1])} to {last} over {len(points)} rounds"
        others = [other for name, other in sorted(series.items()) if compared and name != site]
        graph = charts.panel(title, points, others, rounds, axis, gaps)
        panels.append({"site": site, "last": last, "graph": graph})
    where = {"val": "on validation patients", "train": "in training"}[split]
    title = metric.title if known else short.replace("_", " ").capitalize()
    return {"name": name, "title": f"{title} {where}", "panels": panels}


def _score(value: float) -> str:
    """Return a curve's value with two decimals; a rounded minus zero would look like a mistake."""
    text = f"{value:.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def on_all_sentence(run: Run) -> str:
    """Return which rounds trained on validation patients, too; '' if none was merged that did."""
    train, last = run.study.section("train"), last_round(run.rounds)
    first = first_on_all(int(train.get("rounds") or 0), int(train.get("last_rounds_on_all") or 0))
    if first is None or last < first:
        return ""
    trained = f"round {last}" if first == last else f"rounds {first} to {last}"
    return (
        f"In {trained} each hospital trained on its validation patients, too: the model of round {first - 1} "
        "is the last one with scores on validation patients."
    )


def participation(run: Run) -> list[dict[str, Any]]:
    """Return each hospital's rounds, what it missed and why, its time, and the bytes it sent and received."""
    by_site: dict[str, list[RoundLine]] = {}
    for line in run.training_lines:
        by_site.setdefault(line.site, []).append(line)
    notes = _notes(run)
    for site, number in joined_later(run.merges, run.rounds).items():
        came = ("its first merged update; the rounds before are without it", f"round {number}")
        notes[site] = [came, *notes.get(site, [])]
    lines = [_participation(site, lines, notes.get(site, [])) for site, lines in sorted(by_site.items())]
    # Of every round, the last one with final scores too: as the first page and the privacy officer have them.
    return [line | moved_bytes(run, line["site"]) for line in lines]


def moved_bytes(run: Run, site: str) -> dict[str, str]:
    """Return how many bytes a hospital sent ("up") and received ("down") over all rounds, as text."""
    own = [line for line in run.rounds if line.site == site]
    return {
        "up": format_bytes(sum(line.bytes_up for line in own)),
        "down": format_bytes(received) if (received := sum(line.bytes_received for line in own)) else "–",
    }


def _notes(run: Run) -> dict[str, list[tuple[str, str]]]:
    """Return what was odd about each hospital's updates and results, each with its rounds."""
    rounds: dict[str, dict[str, list[int]]] = {}
    for line in run.rounds:
        for note in line.notes:
            rounds.setdefault(line.site, {}).setdefault(note, []).append(line.round)
    return {
        site: [(note, round_ranges(when)) for note, when in notes.items()] for site, notes in rounds.items()
    }


def _participation(site: str, lines: list[RoundLine], notes: list[tuple[str, str]]) -> dict[str, Any]:
    statuses = [line.status for line in lines]
    merged = sum(status in TOOK_PART for status in statuses)
    missed: dict[str, list[int]] = {}
    for line in lines:
        if line.status not in (*TOOK_PART, "not sampled"):
            why = line.status + (f": {line.reason}" if line.reason else "")
            missed.setdefault(why, []).append(line.round)
    seconds = [line.seconds for line in lines if line.seconds is not None]
    examples = [line.examples for line in lines if line.examples is not None]
    return {
        "site": site,
        "strip": charts.strip(statuses, f"{site}: took part in {merged} of {len(statuses)} rounds"),
        "merged": merged,
        "rounds": len(statuses),
        "missed": [*((why, round_ranges(numbers)) for why, numbers in missed.items()), *notes],
        "seconds": sum(seconds) / len(seconds) if seconds else None,
        "examples": max(examples, default=0) or None,
    }
