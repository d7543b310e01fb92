"""A run folder becomes one HTML file that a clinician, a statistician and a reviewer can each read.

`write_report(run)` reads what the run wrote (rows, rounds, settings) and nothing else; every number in the
page is a row's number. The file needs no network, has no script, prints, follows the reader's light or dark
setting, and is the same bytes for the same run. It holds no case id and no patient's row: `cases.jsonl` is
not opened here.

`headline(run)` is its first sentence for the terminal. Pages with a patient's images are made by
`local_pages` and stay in the hospital.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from medfed.errors import RunError
from medfed.evaluation import charts, checklists, histograms, report_sections
from medfed.evaluation.histograms import ScoreHistogram
from medfed.evaluation.intervals import TOO_NARROW
from medfed.evaluation.metrics import Metric, headline_metrics, metric_of
from medfed.evaluation.robustness import CONDITION
from medfed.evaluation.rows import ALL_SITES, FEDERATED, POOLED, UNTRAINED, Row, read_rows
from medfed.evaluation.summarise import (
    ResolvedStudy,
    read_json,
    read_resolved_study,
    summarise,
)
from medfed.files import write_whole
from medfed.runs.rounds import RoundLine, last_round, read_rounds

# What the headline is about, best first; a row of one of these must be there.
HEADLINES = tuple(metric.name for metric in headline_metrics())
SPLITS = ("test", "val", "train")
# Settings whose values may name a path, an address or a person's file stay out of the page.
PRIVATE_KEYS = ("sites", "held_out", "path", "folder", "file", "url", "server", "key", "token", "cache")

# What run.json may say; a run that says less still has a report.
ABOUT = ("study", "digest", "seed", "command", "hardware", "started", "seconds", "task")


class Run(NamedTuple):
    """What a run folder holds, as far as it is written."""

    about: dict[str, Any]
    study: ResolvedStudy
    rows: list[Row]
    rounds: list[RoundLine]
    curves: list[ScoreHistogram]
    audit_entries: int | None


def read_run(run: Path) -> Run:
    """Return a run folder's contents.

    Raises:
        RunError: there is no such folder, no rows in it, or a file is damaged.
    """
    if not (run / "rows.jsonl").is_file():
        raise RunError(f"{run.name}: no rows.jsonl in this folder; name the folder of a finished run")
    curves = run / "curves.jsonl"
    audit = run / "audit.jsonl"
    return Run(
        read_json(run / "run.json"),
        read_resolved_study(run),
        read_rows(run / "rows.jsonl"),
        read_rounds(run / "rounds.jsonl"),
        histograms.read(curves) if curves.is_file() else [],
        sum(1 for _ in audit.open("rb")) if audit.is_file() else None,
    )


class Focus(NamedTuple):
    """What the report is mainly about: one metric of one structure, on one split, in one round."""

    metric: str
    structure: str | None
    split: str
    round: int
    places: list[str]


def focus_of(run: Run) -> Focus | None:
    """Return the headline metric and the hospitals to show it at: those held out first, then all that took
    part."""
    whole = [row for row in run.rows if row.group is None and row.against is None and row.model == FEDERATED]
    for split in SPLITS:
        for metric in HEADLINES:
            some = [
                row for row in whole if row.split == split and row.metric == metric and row.value is not None
            ]
            if not some:
                continue
            latest = max(row.round for row in some)
            some = [row for row in some if row.round == latest]
            structures = {row.structure for row in some}
            structure = None if None in structures else sorted(map(str, structures))[0]
            sites = [row.site for row in some if row.structure == structure]
            apart = [site for site in run.about.get("held_out", []) if site in sites]
            inside = [ALL_SITES] if ALL_SITES in sites else []
            rest = sorted(site for site in sites if site not in {*apart, ALL_SITES})
            return Focus(metric, structure, split, latest, apart + inside or rest)
    return None


def _find(rows: Iterable[Row], focus: Focus, site: str, model: str, metric: str | None = None) -> Row | None:
    for row in rows:
        if (
            row.site == site
            and row.model == model
            and row.metric == (metric or focus.metric)
            and row.structure == focus.structure
            and row.split == focus.split
            and row.round == focus.round
            and row.group is None
            and row.against is None
        ):
            return row
    return None


def _versus(rows: Iterable[Row], focus: Focus, site: str, other: str) -> Row | None:
    for row in rows:
        if (
            row.against == other
            and row.model == FEDERATED
            and row.group is None
            and (row.site, row.metric, row.structure, row.split, row.round)
            == (site, focus.metric, focus.structure, focus.split, focus.round)
        ):
            return row
    return None


# An interval narrower than this would be written as a single number with two decimals.
NARROW = 0.05


def number(value: float | None, metric: Metric | None = None, sign: bool = False, fine: bool = False) -> str:
    """Return a value as a person reads it: two decimals where the range is 0 to 1 (three for a difference, or
    where `fine`), else about three digits."""
    if value is None:
        return "–"
    if metric is None or (metric.lowest in (0.0, -1.0) and metric.highest == 1.0):
        digits = 2 if metric is not None and not sign and not fine else 3
    else:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) >= 1e-9 else 1
        digits = min(digits, 2)
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    # A rounded minus zero reads as a slip.
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "−")


def interval(row: Row, sign: bool = False, fine: bool = False) -> str:
    """Return the interval of a row as text, or an empty string where it has none."""
    if row.low is None or row.high is None:
        return ""
    metric = metric_of(row.metric)
    return f"{number(row.low, metric, sign, fine)} to {number(row.high, metric, sign, fine)}"


def few(row: Row | None) -> bool:
    """Tell whether a row's interval is of so few patients that it is likely too narrow."""
    return row is not None and row.low is not None and TOO_NARROW in (row.note or "")


def label_of(metric: str, time: str = "") -> str:
    """Return a metric's label, with the column that counts the time where it is of a time."""
    return metric_of(metric).title + (f" ({time})" if time and metric.startswith("brier@") else "")


def narrow(row: Row | None) -> bool:
    """Tell whether two decimals would make one number of a row's interval."""
    return row is not None and row.low is not None and row.high is not None and row.high - row.low < NARROW


def model_name(model: str) -> str:
    """Return what a reader calls a model."""
    if ":" in model:
        kind, site = model.split(":", 1)
        return {"local": f"{site} alone", "without": f"federated without {site}"}.get(
            kind, f"personalised for {site}"
        )
    return {
        FEDERATED: "Federated",
        POOLED: "Pooled",
        UNTRAINED: "Untrained",
    }.get(model, model)


def site_name(site: str) -> str:
    """Return what a reader calls a hospital."""
    return "all hospitals of the study" if site == ALL_SITES else site


def _best(rows: Sequence[Row], metric: Metric) -> Row | None:
    known = [row for row in rows if row.value is not None]
    if not known:
        return None
    return (min if metric.better == "lower" else max)(known, key=lambda row: row.value or 0.0)


def _locals(run: Run, focus: Focus, site: str) -> list[Row]:
    models = sorted({row.model for row in run.rows if row.model.startswith("local:")})
    return [row for model in models if (row := _find(run.rows, focus, site, model)) is not None]


class Sentence(NamedTuple):
    """The report's first lines: before, the number itself, after; and what it compares with."""

    before: str
    value: str
    after: str
    second: str

    @property
    def text(self) -> str:
        return f"{self.before}{self.value}{self.after} {self.second}".strip()


def sentence(run: Run, focus: Focus | None) -> Sentence:
    """Return the one finding, with its interval, its hospital, its patients and what it is compared with."""
    if focus is None or not focus.places:
        return Sentence("This run has no result of the federated model that may be shown.", "", "", "")
    metric, site = metric_of(focus.metric), focus.places[0]
    row = _find(run.rows, focus, site, FEDERATED)
    assert row is not None
    held_out = site in run.about.get("held_out", [])
    where = (
        f"at {site}, a hospital that took no part in training"
        if held_out
        else ("over all hospitals of the study" if site == ALL_SITES else f"at {site}")
    )
    fine = narrow(row)
    spread = f" (95 % CI {interval(row, fine=fine)})" if row.low is not None else ""
    unit = f" {metric.unit}" if metric.unit else ""
    of = f" for {focus.structure}" if focus.structure and len(_structures(run, focus)) > 1 else ""
    patients = _patients_and_events(run, focus, row)
    split = (
        "" if focus.split == "test" else f", {'validation' if focus.split == 'val' else focus.split} split"
    )
    after = f"{unit}{spread}{of} {where}, in {patients}{split}."
    best = _best(_locals(run, focus, site), metric)
    second = ""
    if best is not None:
        reached = number(best.value, metric, fine=fine)
        second = f"The best model that a single hospital trained alone reaches {reached}"
        versus = _versus(run.rows, focus, site, best.model)
        if versus is not None and versus.value is not None:
            # Where nothing is there a model has a Dice only if it invents something: then the means are not
            # of the same patients, and the difference is not theirs.
            apart = best.n != row.n
            second += f" in {best.n}" if apart else ""
            second += f"; the difference, paired by patient{f' in {versus.n}' if apart else ''}, is "
            second += number(versus.value, metric, sign=True)
            if versus.low is not None:
                second += f" (95 % CI {interval(versus, sign=True)})"
            if versus.p is not None:
                second += f", p {'' if versus.p < 0.001 else '= '}{p_value(versus.p)}"
        second += "."
    return Sentence(f"Federated model: {metric.title} ", number(row.value, metric, fine=fine), after, second)


def _patients_and_events(run: Run, focus: Focus, row: Row) -> str:
    text = f"{row.n} patient{'s' if row.n != 1 else ''}"
    events = _find(run.rows, focus, row.site, row.model, "events")
    if events is None or events.value is None:
        return text
    return f"{text} with {events.value:.0f} event{'s' if events.value != 1 else ''}"


def _structures(run: Run, focus: Focus) -> set[str]:
    return {row.structure for row in run.rows if row.metric == focus.metric and row.structure is not None}


def p_value(p: float) -> str:
    """Return a p value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def headline(run: Path) -> str:
    """Return a run's finding as one line for the terminal."""
    found = read_run(run)
    return sentence(found, focus_of(found)).text


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path; rows first, where what they are
    made of is here.

    Raises:
        RunError: the folder is no run, or one of its files is damaged.
        DataError: case rows that contradict each other.
    """
    if (run / "cases.jsonl").is_file() or (run / "reported.jsonl").is_file():
        summarise(run)
    path = run / "report.html"
    write_whole(path, render(read_run(run)), durable=True)
    return path


def render(run: Run) -> str:
    """Return the page."""
    import jinja2

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(
        number=number,
        interval=interval,
        metric_of=metric_of,
        model_name=model_name,
        site_name=site_name,
        p_value=p_value,
        FEDERATED=FEDERATED,
        few=few,
        label_of=partial(label_of, time=str(run.study.section("data").get("time") or "")),
    )
    focus = focus_of(run)
    page = environment.get_template("report.html.jinja").render(
        style=(here / "report.css").read_text(encoding="utf-8"),
        run=run,
        about={**dict.fromkeys(ABOUT), **run.about},
        models=_models(run),
        focus=focus,
        metric=metric_of(focus.metric) if focus else None,
        sentence=sentence(run, focus),
        facts=_facts(run, focus),
        comparisons=[_comparison(run, focus, site) for site in focus.places] if focus else [],
        measures=_measures(run, focus) if focus else None,
        curves=_curves(run),
        taking_part=_taking_part(run),
        matrix=_matrix(run, focus) if focus else None,
        diagrams=_diagrams(run, focus) if focus else [],
        subgroups=_subgroups(run, focus) if focus else [],
        **_further(run, focus),
        cases=_patients(run),
        settings=_settings(run.study.sections),
        limits=_limits(run, focus),
        card=checklists.model_card(run.about, run.study.sections, sentence(run, focus).text),
        lists=checklists.filled(run.about, run.study.sections, run.rows, run.rounds),
        versions=sorted(run.about.get("versions", {}).items()),
        images=run.about.get("task") in ("segment", "classify"),
        hidden=sum(1 for row in run.rows if row.value is None and "fewer than" in (row.note or "")),
    )
    return page + "\n" if not page.endswith("\n") else page


def _further(run: Run, focus: Focus | None) -> dict[str, Any]:
    """Return the sections that only some runs have."""
    if focus is None:
        return dict.fromkeys(("left_out", "contributions", "learnt_anew", "personalised", "robustness"))
    found = report_sections.Rows(run.rows, focus.metric, focus.structure, focus.split, focus.round)
    sites, apart = run.about.get("sites", []), run.about.get("held_out", [])
    return {
        "left_out": report_sections.left_out(found, sites),
        "learnt_anew": report_sections.methods(found, sites),
        "contributions": report_sections.contributions(
            found, sites, apart, lambda place: found.of(place, FEDERATED) is not None
        ),
        "personalised": report_sections.personalised(found, sites),
        "robustness": report_sections.robustness(found, focus.places),
    }


def _merging(run: Run) -> list[RoundLine]:
    """Return the lines of rounds in which sites could take part; a last line a site only reports final
    scores."""
    last = last_round(run.rounds)
    return [entry for entry in run.rounds if entry.round <= last and entry.status != "reported"]


def _facts(run: Run, focus: Focus | None) -> list[tuple[str, str]]:
    facts = [("hospitals trained together", str(len(run.about.get("sites", []))))]
    if run.rounds:
        facts.append(("rounds", str(len({entry.round for entry in _merging(run)}))))
        received = sum(entry.bytes_up for entry in run.rounds)
        if received:
            facts.append(("sent by the hospitals, in all", size(received)))
    facts += _privacy(run.about.get("privacy") or {})
    if run.about.get("seconds") is not None:
        facts.append(("for the whole run", duration(float(run.about["seconds"]))))
    if focus is not None:
        counted = [row for row in run.rows if row.metric == "patients" and row.model == FEDERATED]
        by_site = {
            row.site: row.n or 0 for row in counted if (row.split, row.round) == (focus.split, focus.round)
        }
        # Hospitals that are too small to be shown are in the row of all.
        inside = by_site.pop(ALL_SITES, 0)
        apart = sum(n for site, n in by_site.items() if site in run.about.get("held_out", []))
        patients = inside + apart if inside else sum(by_site.values())
        if patients:
            facts.append(("patients tested" if focus.split == "test" else "patients", str(patients)))
    return facts


def _privacy(privacy: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what differential privacy cost, at the site that spent most."""
    spent = [site["epsilon"] for site in privacy.get("sites", {}).values()]
    if not spent:
        return []
    unit = "hospital" if privacy["unit"] == "site" else privacy["unit"]
    return [(f"epsilon spent for each {unit}, at delta {privacy['delta']:g}", f"{max(spent):.2f}")]


def size(count: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Return a time as a person reads it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _models(run: Run) -> list[str]:
    names = {row.model for row in run.rows if row.against is None}
    rank = {FEDERATED: 0, POOLED: 1, UNTRAINED: 9}
    return sorted(names, key=lambda name: (rank.get(name, 3 if name.startswith("local:") else 5), name))


def _comparison(run: Run, focus: Focus, site: str) -> dict[str, Any]:
    metric = metric_of(focus.metric)
    # Models without a hospital, and those made for one, have tables of their own.
    models = [model for model in _models(run) if not model.startswith(("without:", "personal:"))]
    rows = [row for model in models if (row := _find(run.rows, focus, site, model)) is not None]
    shown = [row for row in rows if row.model != UNTRAINED]
    axis = charts.span(
        [bound for row in shown for bound in (row.value, row.low, row.high)], metric.lowest, metric.highest
    )
    ours = _find(rows, focus, site, FEDERATED)
    lines: list[dict[str, Any]] = []
    for row in rows:
        spoken = f"{model_name(row.model)}: {number(row.value, metric)}, {interval(row)}"
        lines.append(
            {
                "row": row,
                "versus": _versus(run.rows, focus, site, row.model),
                "graph": charts.whisker(
                    row.value,
                    row.low,
                    row.high,
                    axis,
                    zero=ours.value if ours else None,
                    strong=row.model == FEDERATED,
                    title=spoken,
                )
                # A model far off the axis would be drawn at its edge, which says a wrong number.
                if row.value is not None and axis[0] <= row.value <= axis[1]
                else "",
                "wide": "wide" in (row.note or ""),
            }
        )
    methods = sorted(
        {
            line["versus"].method
            for line in lines
            if line["versus"] is not None and line["versus"].p is not None
        }
    )
    return {
        "site": site,
        "held_out": site in run.about.get("held_out", []),
        "lines": lines,
        "scale": charts.scale(axis),
        "fine": narrow(ours),
        "title": "Against each hospital alone"
        if any(":" in row.model for row in rows)
        else "Against other models",
        "method": ours.method if ours else None,
        "methods": methods,
        "notes": [
            (model_name(line["row"].model), line["versus"].note)
            for line in lines
            if line["versus"] is not None
            and line["row"].model != UNTRAINED
            and "patients" in (line["versus"].note or "")
        ],
        "n": ours.n if ours else None,
    }


def _measures(run: Run, focus: Focus) -> dict[str, Any]:
    mine = [row for row in run.rows if row.model == FEDERATED and row.split == focus.split]
    sites = sorted({row.site for row in mine if row.value is not None})
    apart = [site for site in run.about.get("held_out", []) if site in sites]
    order = [*apart, *([ALL_SITES] if ALL_SITES in sites else [])]
    order += [site for site in sites if site not in order]
    rows = [
        row
        for row in run.rows
        if row.model == FEDERATED
        and row.split == focus.split
        and row.round == focus.round
        and row.group is None
        and row.against is None
        and row.metric != "patients"
    ]
    names = sorted({(row.structure, row.metric) for row in rows}, key=lambda name: _rank(name[1]))
    table = {(row.structure, row.metric, row.site): row for row in rows}
    structures = list(dict.fromkeys(structure for structure, _ in names))
    structures.sort(key=lambda name: (name is not None, name or ""))
    return {
        "sites": order,
        "structures": [
            (
                structure,
                [
                    (metric, [table.get((structure, metric, site)) for site in order])
                    for s, metric in names
                    if s == structure
                ],
            )
            for structure in structures
        ],
    }


def _rank(metric: str) -> tuple[int, float, str]:
    at = float(metric.split("@")[1]) if "@" in metric else 0.0
    return metric_of(metric).rank, at, metric


# Curves worth a reader's time, best first: one score on validation patients, then the losses.
SCORES = tuple(f"val/{name}" for name in HEADLINES)
LOSSES = ("val/loss", "train/loss")


def _curves(run: Run) -> list[dict[str, Any]]:
    there = {name for entry in run.rounds for name in entry.scalars}
    names = [name for name in SCORES if name in there][:1] + [name for name in LOSSES if name in there]
    return [curve for name in names if (curve := _curve(run, name)) is not None]


def _curve(run: Run, name: str) -> dict[str, Any] | None:
    # A site validates the model that a round begins with, which the round before it made; the untrained one
    # is 0.
    shift = 1 if name.startswith("val/") else 0
    lines: dict[str, list[charts.Point]] = {}
    for entry in run.rounds:
        value = entry.scalars.get(name)
        if value is not None and math.isfinite(value):
            lines.setdefault(entry.site, []).append((float(entry.round - shift), value))
    if not any(len(line) > 1 for line in lines.values()):
        return None
    metric = metric_of(name.split("/")[-1])
    values = [y for line in lines.values() for _, y in line]
    axis = charts.span(values, metric.lowest if metric.better != "none" else None, metric.highest, 3)
    numbers = [int(x) for line in lines.values() for x, _ in line]
    rounds = (min(numbers), max(numbers))
    panels = []
    for site, line in sorted(lines.items()):
        known = {int(x) for x, _ in line}
        gaps = [number for number in range(rounds[0], rounds[1] + 1) if number not in known]
        gaps = [gap for gap in gaps if _status(run, gap + shift, site) in ("absent", "refused", "late")]
        spoken = (
            f"{site}: {name} from {number_(line[0][1])} to {number_(line[-1][1])} over {len(line)} rounds"
        )
        others = [other for where, other in sorted(lines.items()) if where != site]
        graph = charts.panel(spoken, line, others, rounds, axis, gaps)
        panels.append({"site": site, "last": number_(line[-1][1]), "graph": graph})
    where = {"val": "on validation patients", "train": "in training"}[name.split("/")[0]]
    short = name.split("/")[-1].replace("_", " ").capitalize()
    label = metric.title if metric.better != "none" else short
    return {"name": name, "label": f"{label} {where}", "panels": panels}


def number_(value: float) -> str:
    """Return a curve's value with two decimals."""
    return number(value, metric_of("dice"))


def _status(run: Run, at: int, site: str) -> str:
    for entry in run.rounds:
        if entry.round == at and entry.site == site:
            return entry.status
    return ""


def _taking_part(run: Run) -> list[dict[str, Any]]:
    found = []
    for site in sorted({entry.site for entry in _merging(run)}):
        entries = [entry for entry in _merging(run) if entry.site == site]
        statuses = [entry.status for entry in entries]
        merged = statuses.count("merged")
        missed: dict[str, list[int]] = {}
        for entry in entries:
            if entry.status not in ("merged", "not sampled"):
                words = entry.status + (f": {entry.reason}" if entry.reason else "")
                missed.setdefault(words, []).append(entry.round)
        seconds = [entry.seconds for entry in entries if entry.seconds is not None]
        examples = [entry.examples for entry in entries if entry.examples is not None]
        found.append(
            {
                "site": site,
                "strip": charts.strip(statuses, f"{site}: took part in {merged} of {len(statuses)} rounds"),
                "merged": merged,
                "rounds": len(statuses),
                "missed": [(words, rounds_of(numbers)) for words, numbers in missed.items()],
                "seconds": sum(seconds) / len(seconds) if seconds else None,
                "examples": max(examples) if examples else None,
                "up": size(sum(entry.bytes_up for entry in entries)),
                "down": size(sum(entry.bytes_down for entry in entries)),
            }
        )
    return found


def rounds_of(numbers: Sequence[int]) -> str:
    """Return round numbers as text: '3 to 5, 8'."""
    parts: list[list[int]] = []
    for value in sorted(numbers):
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    words = ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
    return f"round{'s' if len(numbers) > 1 else ''} {words}"


def _matrix(run: Run, focus: Focus) -> dict[str, Any] | None:
    models = [model for model in _models(run) if model != UNTRAINED and not model.startswith("without:")]
    sites = [*run.about.get("sites", []), ALL_SITES, *run.about.get("held_out", [])]
    shown = {row.site for row in run.rows if row.metric == focus.metric and row.value is not None}
    # Hospitals too small to be shown have no column; all of them together then stand for them.
    every = [site for site in sites if site in shown]
    sites = [site for site in every if site != ALL_SITES or len(every) < len(sites)]
    rows = [[_find(run.rows, focus, site, model) for site in sites] for model in models]
    values = [row.value for line in rows for row in line if row is not None and row.value is not None]
    if len(models) < 2 or len(values) < 4:
        return None
    low, high = min(values), max(values)
    lower = metric_of(focus.metric).better == "lower"

    def share(row: Row | None) -> float:
        if row is None or row.value is None or high <= low:
            return 0.0
        part = (row.value - low) / (high - low)
        return round(1 - part if lower else part, 3)

    lines = [
        (
            model,
            [
                {"row": row, "share": share(row), "home": model.endswith(f":{site}")}
                for site, row in zip(sites, line, strict=True)
            ],
        )
        for model, line in zip(models, rows, strict=True)
    ]
    return {"sites": sites, "held_out": set(run.about.get("held_out", [])), "lines": lines}


# Curves from bins that leave the area under the ROC curve open by more than this show the bins and
# not the model.
_UNDECIDED = 0.5


def _diagrams(run: Run, focus: Focus) -> list[dict[str, Any]]:
    some = [h for h in run.curves if h.model == FEDERATED and h.split == focus.split]
    apart = set(run.about.get("held_out", []))
    found = []
    for structure in sorted({h.structure for h in some}, key=lambda name: name or ""):
        its = [h for h in some if h.structure == structure]
        inside = [h for h in its if h.site not in apart]
        groups = [(h.site, h) for h in its if h.site in apart]
        if inside:
            groups.append((ALL_SITES, histograms.merged(inside)))
        for site, histogram in groups:
            if (bounds := histograms.auroc_bounds(histogram)) is not None:
                found.append(_diagram(site, structure, histogram, bounds))
    return found


def _diagram(
    site: str, structure: str | None, histogram: ScoreHistogram, bounds: histograms.Bounds
) -> dict[str, Any]:
    if bounds.high - bounds.low > _UNDECIDED:
        return {
            "site": site,
            "structure": structure,
            "bounds": bounds,
            "bins": len(histogram.bins),
            "drawn": False,
        }
    bins = histograms.reliability(histogram)
    benefit = histograms.net_benefit_of(histogram)
    prevalence = histogram.positives / max(histogram.positives + histogram.negatives, 1)
    diagonal = [(0.0, 0.0), (1.0, 1.0)]
    top = max([prevalence, *(model for _, model, _ in benefit)], default=1.0) or 1.0
    return {
        "site": site,
        "structure": structure,
        "bounds": bounds,
        "bins": len(histogram.bins),
        "drawn": True,
        "roc": charts.square(
            f"ROC curve at {site_name(site)}, area {number(bounds.value)}",
            "1 − specificity",
            "Sensitivity",
            [("dashed", diagonal), ("strong", histograms.roc(histogram))],
        ),
        "reliability": charts.square(
            f"Reliability at {site_name(site)}: "
            + "; ".join(f"predicted {number(b.predicted)}, observed {number(b.observed)}" for b in bins),
            "Predicted risk",
            "Observed share",
            [("dashed", diagonal), ("strong thin", [(b.predicted, b.observed) for b in bins])],
            [(b.predicted, b.observed, b.low, b.high) for b in bins],
        ),
        "decision": charts.square(
            f"Decision curve at {site_name(site)}, net benefit at {len(benefit)} thresholds",
            "Threshold probability",
            "Net benefit",
            [
                ("dashed", [(x, everyone) for x, _, everyone in benefit if everyone >= -0.1 * top]),
                ("dotted", [(0.0, 0.0), (1.0, 0.0)]),
                ("strong", [(x, model) for x, model, _ in benefit]),
            ],
            y_axis=(-0.1 * top, 1.1 * top),
        )
        if len(benefit) > 1
        else "",
    }


def _subgroups(run: Run, focus: Focus) -> list[dict[str, Any]]:
    rows = [row for row in run.rows if row.group is not None and row.split == focus.split]
    rows = [row for row in rows if not str(row.group).startswith(CONDITION)]
    rows = [row for row in rows if row.model == FEDERATED and row.round == focus.round]
    found = []
    for site in dict.fromkeys(row.site for row in rows):
        for attribute in dict.fromkeys(
            row.group.split("=")[0] for row in rows if row.site == site and row.group
        ):
            some = [r for r in rows if r.site == site and r.group and r.group.split("=")[0] == attribute]
            gaps = {row.group: row for row in some if row.against is not None}
            lines: list[dict[str, Any]] = [
                {"name": str(row.group).split("=", 1)[1], "row": row, "gap": gaps.get(row.group)}
                for row in some
                if row.against is None
            ]
            if any(row.value is not None for row in some):
                metric = some[0].metric
                found.append(
                    {"site": site, "attribute": attribute.replace("_", " "), "metric": metric, "lines": lines}
                )
    return found


def _patients(run: Run) -> dict[str, Any] | None:
    """Return how many cases each hospital has in each split; a small number is only called small."""
    counts = run.about.get("cases")
    if not isinstance(counts, Mapping):
        return None
    splits = ("train", "val", "test")
    minimum = run.study.min_patients

    def shown(value: Any) -> str:
        return f"< {minimum}" if isinstance(value, int) and 0 < value < minimum else str(value or 0)

    sites = [*run.about.get("sites", []), *run.about.get("held_out", [])]
    lines = [(site, [shown((counts.get(site) or {}).get(split)) for split in splits]) for site in sites]
    return {"splits": splits, "lines": lines, "held_out": set(run.about.get("held_out", []))}


def _settings(study: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the study's settings by section; what could name a path or an address is left out."""
    found = []
    for section in ("task", "network", "data", "train", "rule", "sampling", "privacy", "local", "evaluation"):
        value = study.get(section)
        if isinstance(value, Mapping):
            pairs = [(name, text) for name, text in flat(value) if "/" not in text and "\\" not in text]
            if pairs:
                found.append((section, pairs))
    return found


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as dotted names and texts."""
    found = []
    for name, inner in value.items():
        if str(name).lower() in PRIVATE_KEYS:
            continue
        if isinstance(inner, Mapping):
            found += flat(inner, f"{prefix}{name}.")
        elif inner is not None:
            text = ", ".join(map(str, inner)) or "none" if isinstance(inner, (list, tuple)) else str(inner)
            found.append((f"{prefix}{name}", text))
    return found


def _limits(run: Run, focus: Focus | None) -> list[str]:
    found = []
    apart = run.about.get("held_out", [])
    if not apart:
        found.append(
            "No hospital was held out: how the model does at a hospital that took no part is not known."
        )
    elif focus is not None:
        rows = [row for site in apart if (row := _find(run.rows, focus, site, FEDERATED)) is not None]
        patients = sum(row.n or 0 for row in rows)
        found.append(
            f"It was tested at {len(apart)} hospital{'s' if len(apart) > 1 else ''} that took no part, in "
            f"{patients} patients. A difference between hospitals cannot be told from so few."
            if len(apart) < 3
            else f"It was tested at {len(apart)} hospitals that took no part, in {patients} patients."
        )
    if focus is not None and focus.split != "test":
        found.append("There is no test split: these patients were seen while the model was chosen.")
    mine = [row for row in run.rows if row.model == FEDERATED and row.group is None and row.against is None]
    if focus is not None:
        broad = [
            row
            for row in mine
            if "wide" in (row.note or "") and row.metric == focus.metric and row.site in focus.places
        ]
        if broad:
            found.append(
                "The headline's interval is wide: "
                + "; ".join(f"{site_name(row.site)} {interval(row)}" for row in broad)
                + ". More patients are needed before it decides anything."
            )
        missed = [row for row in mine if row.metric == "missed" and row.value and row.split == focus.split]
        for row in missed:
            if row.site in focus.places:
                what = row.structure or "the structure"
                found.append(
                    f"The federated model missed {what} altogether in {row.value:.0f} of {row.n} patients at "
                    f"{site_name(row.site)}; their Dice counts as 0, their distance cannot be measured."
                )
    hidden = sum(1 for row in run.rows if row.value is None and "fewer than" in (row.note or ""))
    if hidden:
        found.append(f"{hidden} values are not shown, because they would be about too few patients.")
    lost = [entry for entry in _merging(run) if entry.status in ("absent", "refused", "late")]
    if lost:
        found.append(
            f"{len(lost)} of {len(_merging(run))} contributions are missing, of "
            + ", ".join(sorted({entry.site for entry in lost}))
            + "; the model has seen less of their patients."
        )
    found += [f"Nothing was measured at {site}: {why}." for site, why in _told(run, "unmeasured")]
    found += [
        f"There is no model to compare with of {model_name(model)}: {why}."
        for model, why in _told(run, "missing_models")
    ]
    if run.study.kind("privacy") in ("none", ""):
        found.append(
            "No privacy mechanism protected the updates: whoever receives one may learn about its patients."
        )
    best = [model for model in _models(run) if model.startswith("local:")]
    if best:
        found.append(
            "The best single hospital's model was picked on the patients it is reported on, which favours it."
        )
    found.append("Nothing here shows benefit or safety in care. The model is not a medical device.")
    return found


def _told(run: Run, what: str) -> list[tuple[str, str]]:
    """Return what a run could not make or measure, with the reasons it wrote down."""
    return sorted((str(name), str(why)) for name, why in (run.about.get(what) or {}).items())
