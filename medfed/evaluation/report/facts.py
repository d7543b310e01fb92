"""The report's key figures, table of cases, and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from medfed.evaluation.report.focus import Focus
from medfed.evaluation.report.formatting import duration, shown_values, site_name
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import ALL_SITES, FEDERATED
from medfed.files import format_bytes

SECTIONS = ("task", "network", "data", "train", "rule", "sampling", "privacy", "local", "evaluation")
# Settings whose values may name a path, an address or a person's file are left out of the page.
PRIVATE_KEYS = ("sites", "held_out", "path", "folder", "file", "url", "server", "key", "token", "cache")


def key_figures(run: Run, focus: Focus | None) -> list[tuple[str, str]]:
    """Return the figures below the headline, as name and text."""
    trained, planned = len(run.trained), len(run.facts.sites)
    of = f" of {planned}" if trained < planned else ""
    figures = [("hospitals trained together", f"{trained}{of}")]
    if run.own:
        figures = [("hospitals in the study", str(planned)), ("updates sent", str(len(run.own.updates)))]
    if run.rounds:
        figures.append(("rounds", str(run.number_of_rounds)))
        if run.facts.chosen and run.facts.chosen.keep == "best":
            figures.append(
                ("whose model is measured: the best on validation", f"round {run.facts.chosen.round}")
            )
        if run.facts.chosen and run.facts.chosen.keep == "average":
            last = f"the last {run.facts.chosen.averaged} rounds'"
            moving = f"all rounds', with a decay of {run.facts.chosen.decay:g} per round"
            averaged = last if run.facts.chosen.decay is None else moving
            figures.append(("whose models' mean is measured", averaged))
        sent = sum(line.bytes_up for line in run.rounds)
        if sent:
            figures.append(
                (f"sent by {run.own.site if run.own else 'the hospitals'}, in all", format_bytes(sent))
            )
    figures += _privacy(run)
    if run.facts.seconds is not UNSET:
        figures.append(("for the whole run", duration(run.facts.seconds)))
    return figures + (_patients(run, focus) if focus is not None else [])


def _patients(run: Run, focus: Focus) -> list[tuple[str, str]]:
    """Return how many patients the headline is of, and of how many that were tested anywhere."""
    rows = focus._replace(metric="patients", structure=None).rows(run.rows)
    row = rows.valued(focus.places[0], FEDERATED) if focus.places else None
    everyone, tested = _tested_patients(run, focus), " tested" if focus.split == "test" else ""
    if row is None or row.n is None or row.n >= everyone:
        return [(f"patients{tested}", str(everyone))] if everyone else []
    return [
        (f"patients at {site_name(focus.places[0])}, of all{tested or ' measured'}", f"{row.n} of {everyone}")
    ]


def _tested_patients(run: Run, focus: Focus) -> int:
    by_site = {
        row.site: row.n or 0
        for row in run.rows
        if (row.metric, row.model, row.split, row.round) == ("patients", FEDERATED, focus.split, focus.round)
    }
    # The row of all hospitals includes those that are too small to have a row of their own.
    pooled = by_site.pop(ALL_SITES, 0)
    if not pooled:
        return sum(by_site.values())
    return pooled + sum(n for site, n in by_site.items() if site in run.facts.held_out)


def _privacy(run: Run) -> list[tuple[str, str]]:
    """Return the epsilon spent at the site that spent most."""
    privacy = run.facts.privacy
    if not privacy.sites:
        return []
    unit = "hospital" if privacy.unit == "site" else privacy.unit
    spent = max(site.epsilon for site in privacy.sites.values())
    return [(f"epsilon spent for each {unit}, at delta {privacy.delta:g}", f"{spent:.2f}")]


def case_table(run: Run) -> dict[str, Any] | None:
    """Return each hospital's number of cases in each split; a small number is given as a bound."""
    counts = run.facts.cases
    if not counts:
        return None
    fewest = run.study.min_patients
    # Over folds each patient trains, validates and is tested.
    splits = ("test",) if run.facts.folds else ("train", "val", "test")

    def shown(number: int) -> str:
        return f"< {fewest}" if 0 < number < fewest else str(number)

    never = set(run.never_merged) if run.rounds else set()
    lines = [
        (
            f"{site} (never merged)" if site in never else site,
            [shown(counts.get(site, {}).get(split, 0)) for split in splits],
        )
        for site in (*run.facts.sites, *run.facts.held_out)
        if not run.own or site in counts
    ]
    return {"splits": splits, "lines": lines}


def settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the study's settings by section, without values that may be a path or an address."""
    sections = []
    for section in SECTIONS:
        value = run.study.sections.get(section)
        if isinstance(value, Mapping):
            pairs = [(name, text) for name, text in flatten(value) if "/" not in text and "\\" not in text]
            if pairs:
                sections.append((section, pairs))
    return sections


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as dotted names and texts, without private keys and empty values."""
    texts = []
    for name, inner in value.items():
        if str(name).lower() in PRIVATE_KEYS or inner is None:
            continue
        if isinstance(inner, Mapping):
            texts += flatten(inner, f"{prefix}{name}.")
        else:
            texts.append((f"{prefix}{name}", shown_values(inner)))
    return texts
