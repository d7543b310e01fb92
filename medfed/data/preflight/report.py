"""A preflight as text for a terminal, and as a page with histograms that stays in the hospital."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from medfed.data.layouts import is_image_word
from medfed.data.preflight.case import CaseFacts
from medfed.data.preflight.issues import Problem
from medfed.data.preflight.preflight import Preflight
from medfed.files import write_whole

# More cases of one problem than this are printed as a count; --json and the page list all.
MAX_SHOWN_CASES = 5
COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
BINS = 64


def show(preflight: Preflight, console: Console) -> None:
    """Print the verdict, then the problems, the worst first, then the facts about the folder."""
    colour = {0: "bold green", 1: "bold yellow", 2: "bold red"}[preflight.exit_code]
    console.print(Text(preflight.verdict, style=colour))
    for problem in preflight.problems:
        console.print()
        line = Text(f"{problem.severity:<8}", style=COLOURS[problem.severity])
        line.append(headline(problem), style="bold" if problem.severity != "note" else "")
        console.print(line)
        for text in _explained(problem):
            console.print(Text(f"        {text}"))
        for name, detail in problem.cases[:MAX_SHOWN_CASES]:
            text = ": ".join(part for part in (name, detail) if part)
            if text:
                console.print(Text(f"        - {text}", style="dim" if problem.severity == "note" else ""))
        if len(problem.cases) > MAX_SHOWN_CASES:
            console.print(Text(f"        - and {len(problem.cases) - MAX_SHOWN_CASES} more", style="dim"))
    console.print()
    lines = fact_lines(preflight.facts)
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        console.print(Text(f"{name:<{width}}  ", style="dim").append(value, style="not dim"))


def headline(problem: Problem) -> str:
    """Return a problem's title with how many cases have it."""
    count = sum(bool(name) for name, _ in problem.cases)
    return f"{problem.title} ({count} {'case' if count == 1 else 'cases'})" if count else problem.title


def _explained(problem: Problem) -> list[str]:
    if problem.severity == "note":
        return []
    return [text for text in (problem.means, f"Do: {problem.remedy}" if problem.remedy else "") if text]


def fact_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts about a folder as pairs of a name and a line."""
    if "columns" in facts:
        return [(name, str(value)) for name, value in facts.items() if name != "columns"] + [
            (f"column {name}", line) for name, line in facts["columns"].items()
        ]
    if not facts["cases"]:
        return [("what it is", str(facts["layout"])), ("cases", "none")]
    splits = ", ".join(f"{n} {split or 'none'}" for split, n in facts["splits"].items())
    lines = [
        ("what it is", str(facts["layout"])),
        ("cases", f"{facts['cases']} of {facts['patients']} patients, {facts['read']} read ({splits})"),
        ("labels", f"{facts['labels']} of {facts['cases']} cases"),
    ]
    if facts["targets"]:
        lines.append(("targets", ", ".join(f"{target}: {n} cases" for target, n in facts["targets"].items())))
    if "table" in facts:
        counts = {word: n for word, n in facts["table"].items() if word != "columns"}
        lines.append(("table", ", ".join(f"{n} cases {word}" for word, n in counts.items())))
        lines.append(("columns", ", ".join(facts["table"]["columns"])))
    for number, one in facts["classes"].items():
        name = f" ({one['name']})" if one["name"] else ""
        lines.append(
            (f"class {number}{name}", f"in {one['cases']} cases, {_percent(one['share'])} of the voxels")
        )
    for key in ("modality", "scanner", "orientation", "channels"):
        lines.append((key, ", ".join(f"{word}: {n}" for word, n in facts[key].items()) or "-"))
    if len(facts["channel_names"]) > 1 and all(map(is_image_word, facts["channel_names"])):
        lines.append(("channel names", f"{', '.join(facts['channel_names'])}, in this order"))
    for key, name, digits in (("spacing_mm", "spacing, mm", 2), ("size", "size, voxels", 0)):
        lines.append((name, _spread(facts[key], digits)))
    if facts["in_pixels"]:
        counted = f"{facts['in_pixels']} of {facts['read']} images have none; a pixel counts as 1 mm above"
        lines.append(("size in mm", counted))
    if facts["intensity"]:
        low, median, high = facts["intensity"]["median"]
        between = f"1st to 99th percentile {low:.4g} to {high:.4g}"
        lines.append(("intensity", f"median {median:.4g} ({between}, medians of the cases)"))
    return lines


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "under 0.1%"


def _spread(rows: Mapping[str, Sequence[float]], digits: int) -> str:
    if not rows:
        return "-"
    text = {name: " x ".join(f"{value:.{digits}f}" for value in values) for name, values in rows.items()}
    if rows["least"] == rows["most"]:
        return f"{text['median']}, all the same"
    return f"median {text['median']}, from {text['least']} to {text['most']}"


# ---------------------------------------------------------------------------------------------- the page


def page(preflight: Preflight) -> str:
    """Return the HTML page of a preflight, which is self-contained: no script, no link."""
    import jinja2

    # Not by `wire.templates`, which code that reads images cannot reach.
    template = (Path(__file__).parent / "preflight.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    severity_of: dict[str, str] = {}
    for problem in reversed(preflight.problems):  # the worst last, so that it wins
        for name, _ in problem.cases:
            severity_of[name] = problem.severity
    read = [facts for _, facts in preflight.cases if facts.read]
    return environment.from_string(template).render(
        preflight=preflight,
        facts=fact_lines(preflight.facts),
        headline=headline,
        severity_of=severity_of,
        histograms=histograms(read),
    )


def write_page(preflight: Preflight, path: Path) -> None:
    """Write the page so that only its owner can read it: the thumbnails are patients' images."""
    write_whole(path, page(preflight), mode=0o600)


def histograms(read: Sequence[CaseFacts]) -> list[dict[str, Any]]:
    """Return the histograms of the page: intensities, spacings, sizes and labelled shares."""
    bars = []
    pooled = np.concatenate([np.asarray(one.quantiles) for one in read if one.quantiles] or [np.zeros(0)])
    if pooled.size:
        low, high = np.percentile(pooled, [0.5, 99.5])
        bars.append(_bars("Intensity of voxels", pooled[(pooled >= low) & (pooled <= high)], ""))
    for axis, letter in enumerate("XYZ"):
        bars.append(_bars(f"Spacing along {letter}", np.array([one.spacing_mm[axis] for one in read]), "mm"))
    bars.append(_bars("Voxels per image", np.array([np.prod(one.shape) / 1e6 for one in read]), "million"))
    marked = [1 - one.classes.get(0, 0) / sum(one.classes.values()) for one in read if one.classes]
    if marked:
        bars.append(_bars("Labelled share of an image", 100 * np.array(marked), "%"))
    return [one for one in bars if one]


def _bars(title: str, values: NDArray[np.float64], unit: str) -> dict[str, Any]:
    values = values[np.isfinite(values)]
    if not values.size:
        return {}
    low, high = float(values.min()), float(values.max())
    histogram = {"title": title, "unit": unit, "low": f"{low:.4g}", "high": "", "heights": []}
    if high - low < 1e-9:
        return histogram
    counts, _ = np.histogram(values, bins=BINS if values.size > 500 else 24, range=(low, high))
    heights = [round(float(count / counts.max()), 4) for count in counts]
    return histogram | {"high": f"{high:.4g}", "heights": heights}
