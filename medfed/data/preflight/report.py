"""A preflight for a person: lines for a terminal, and a page with histograms and thumbnails that
stays in the hospital.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfed.data.preflight.case import CaseFacts
from medfed.data.preflight.preflight import Preflight, Problem

if TYPE_CHECKING:
    from rich.console import Console

# More cases of one problem than this are told as a count; --json and the page list all.
SHOWN_CASES = 5
COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
BINS = 64


def show(found: Preflight, console: Console) -> None:
    """Print the verdict, then the problems, the worst first, then what is in the folder."""
    from rich.text import Text

    colour = {0: "bold green", 1: "bold yellow", 2: "bold red"}[found.exit]
    console.print(Text(found.verdict, style=colour))
    for problem in found.problems:
        console.print()
        line = Text(f"{problem.severity:<8}", style=COLOURS[problem.severity])
        line.append(headline(problem), style="bold" if problem.severity != "note" else "")
        console.print(line)
        for text in _explained(problem):
            console.print(Text(f"        {text}"))
        for name, detail in problem.cases[:SHOWN_CASES]:
            told = ": ".join(part for part in (name, detail) if part)
            if told:
                console.print(Text(f"        - {told}", style="dim" if problem.severity == "note" else ""))
        if len(problem.cases) > SHOWN_CASES:
            console.print(Text(f"        - and {len(problem.cases) - SHOWN_CASES} more", style="dim"))
    console.print()
    lines = facts(found.facts)
    wide = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        console.print(Text(f"{name:<{wide}}  ", style="dim").append(value, style="not dim"))


def headline(problem: Problem) -> str:
    """Return a problem's title with how many cases have it."""
    count = sum(bool(name) for name, _ in problem.cases)
    return f"{problem.title} ({count} {'case' if count == 1 else 'cases'})" if count else problem.title


def _explained(problem: Problem) -> list[str]:
    if problem.severity == "note":
        return []
    return [text for text in (problem.means, f"Do: {problem.cure}" if problem.cure else "") if text]


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a folder's facts as pairs of a name and a line."""
    if "columns" in found:
        return [(name, str(value)) for name, value in found.items() if name != "columns"] + [
            (f"column {name}", line) for name, line in found["columns"].items()
        ]
    if not found["cases"]:
        return [("what it is", str(found["layout"])), ("cases", "none")]
    splits = ", ".join(f"{n} {split or 'none'}" for split, n in found["splits"].items())
    lines = [
        ("what it is", str(found["layout"])),
        ("cases", f"{found['cases']} of {found['patients']} patients, {found['read']} read ({splits})"),
        ("labels", f"{found['labels']} of {found['cases']} cases"),
    ]
    if found["targets"]:
        lines.append(("targets", ", ".join(f"{target}: {n} cases" for target, n in found["targets"].items())))
    for number, one in found["classes"].items():
        name = f" ({one['name']})" if one["name"] else ""
        lines.append(
            (f"class {number}{name}", f"in {one['cases']} cases, {_percent(one['share'])} of the voxels")
        )
    for key in ("modality", "scanner", "orientation", "channels"):
        lines.append((key, ", ".join(f"{word}: {n}" for word, n in found[key].items()) or "-"))
    for key, name, digits in (("spacing_mm", "spacing, mm", 2), ("size", "size, voxels", 0)):
        lines.append((name, _spread(found[key], digits)))
    if found["intensity"]:
        rows = found["intensity"]
        text = (
            f"median {rows['median'][1]:.4g} (1st to 99th percentile "
            f"{rows['median'][0]:.4g} to {rows['median'][2]:.4g}, medians of the cases)"
        )
        lines.append(("intensity", text))
    return lines


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "under 0.1%"


def _spread(rows: Mapping[str, Sequence[float]], digits: int) -> str:
    if not rows:
        return "-"
    told = {name: " x ".join(f"{value:.{digits}f}" for value in values) for name, values in rows.items()}
    if rows["least"] == rows["most"]:
        return f"{told['median']}, all alike"
    return f"median {told['median']}, from {told['least']} to {told['most']}"


# ---------------------------------------------------------------------------------------------- the page


def page(found: Preflight) -> str:
    """Return the HTML page of a preflight: self-contained, without a script and without a link to anywhere."""
    import jinja2

    template = (Path(__file__).parent / "preflight.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    bad: dict[str, str] = {}
    for problem in reversed(found.problems):  # the worst last, so that it wins
        for name, _ in problem.cases:
            bad[name] = problem.severity
    read = [facts_ for _, facts_ in found.cases if facts_.read]
    return environment.from_string(template).render(
        found=found,
        facts=facts(found.facts),
        headline=headline,
        severity_of=bad,
        histograms=histograms(read),
    )


def write_page(found: Preflight, path: Path) -> None:
    """Write the page so that only its owner can read it: the thumbnails are patients' images."""
    text = page(found).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a file that is there keeps its mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)


def histograms(read: Sequence[CaseFacts]) -> list[dict[str, Any]]:
    """Return what the page draws as bars: intensities, spacings, sizes, foregrounds; each with its range."""
    found = []
    pooled = np.concatenate([np.asarray(one.quantiles) for one in read if one.quantiles] or [np.zeros(0)])
    if pooled.size:
        low, high = np.percentile(pooled, [0.5, 99.5])
        found.append(_bars("Intensity of voxels", pooled[(pooled >= low) & (pooled <= high)], ""))
    for axis, letter in enumerate("XYZ"):
        found.append(_bars(f"Spacing along {letter}", np.array([one.spacing_mm[axis] for one in read]), "mm"))
    found.append(_bars("Voxels an image", np.array([np.prod(one.shape) / 1e6 for one in read]), "million"))
    marked = [1 - one.classes.get(0, 0) / sum(one.classes.values()) for one in read if one.classes]
    if marked:
        found.append(_bars("Labelled share of an image", 100 * np.array(marked), "%"))
    return [one for one in found if one]


def _bars(title: str, values: np.ndarray, unit: str) -> dict[str, Any]:
    values = values[np.isfinite(values)]
    if not values.size:
        return {}
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        return {
            "title": title,
            "unit": unit,
            "low": f"{low:.4g}",
            "high": "",
            "heights": [1.0],
            "n": values.size,
        }
    counts, _ = np.histogram(values, bins=BINS if values.size > 500 else 24, range=(low, high))
    heights = [round(float(count / counts.max()), 4) for count in counts]
    return {
        "title": title,
        "unit": unit,
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "heights": heights,
        "n": 0,
    }
