"""What single readers look for: the statistician's methods, what went wrong, and what left each hospital.

The clinician's page is `summary`, the reviewer's are `limits` and `checklists`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medfed.evaluation.conformal import CUTS
from medfed.evaluation.guarantees import RISK
from medfed.evaluation.intervals import MIN_RELIABLE
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.report.formatting import model_name, site_name
from medfed.evaluation.report.limits import suppressed_values
from medfed.evaluation.report.rounds import moved_bytes, participation
from medfed.evaluation.report.run import Run
from medfed.evaluation.report.summary import SIGNIFICANT
from medfed.evaluation.row_transport import PREFIX
from medfed.evaluation.rows import Row
from medfed.runs.rounds import TOOK_PART

# Names of numbers that are listed; a study of its own code may have a hundred.
MAX_NAMES = 40


def methods(run: Run) -> dict[str, Any]:
    """Return how intervals and tests were computed: each method with its metrics, and what holds for all."""
    titles: dict[str, list[str]] = {}
    for row in run.rows:
        if row.method and row.value is not None and not row.metric.startswith(RISK):
            title = metric_of(row.metric).title + (" (difference)" if row.against else "")
            for name in _names(row):
                some = titles.setdefault(name, [])
                if title not in some:
                    some.append(title)
    smallest = run.study.min_patients
    notes = [
        "The unit is the patient: several images of one are averaged first, and resampling draws patients.",
        f"Intervals are 95 % intervals. The bootstrap has {run.study.draws} draws with seed "
        f"{run.facts.seed}, within hospitals where several are pooled. Of fewer than {MIN_RELIABLE} patients "
        "an interval is Student's, marked by a dagger.",
        "A p value and an interval are of one comparison alone, not corrected for the others. Where the test "
        "is a permutation and the interval a bootstrap's, they may disagree near the limit; the first page "
        "calls a model better or worse only where the interval is beyond 0 and Holm's p is below "
        f"{SIGNIFICANT}. Holm's p is corrected over the tests of one measure at one hospital in a section.",
        f"A value over fewer than {smallest} patients is withheld, and so is one from which it would follow; "
        f"{suppressed_values(run)} are.",
    ]
    return {"lines": sorted(titles.items()), "notes": notes}


def _names(row: Row) -> list[str]:
    """Return the methods of a row's interval and of its test, without what differs from row to row."""
    interval, _, test = (row.method or "").partition(";")
    names = [interval.partition(",")[0]]
    # After the semicolon a proportion has its threshold, and a difference its test.
    if row.p is not None and test.strip():
        names.append(f"test: {test.strip().partition(',')[0]}")
    return names


def operation(run: Run) -> list[tuple[str, str]]:
    """Return what did not go as planned, hospital by hospital, as (whose, what)."""
    lines = [(line["site"], f"{when}: {why}") for line in participation(run) for why, when in line["missed"]]
    lines += [
        (site, f"no update was merged: {_planned(run, site)}") for site in run.never_merged if run.rounds
    ]
    lines += [
        (site, f"left out {count} of its cases: {reason}")
        for site, counts in sorted(run.left_out.items())
        for reason, count in counts.items()
    ]
    lines += [(site, why) for site, why in sorted(run.facts.unmeasured.items())]
    lines += [(model_name(model), f"is missing: {why}")
              for model, why in sorted(run.facts.missing_models.items())]  # fmt: skip
    lines += [
        (site_name(site), why) for site, warnings in sorted(run.facts.warnings.items()) for why in warnings
    ]
    return lines


def _planned(run: Run, site: str) -> str:
    asked = sum(line.site == site and line.status != "not sampled" for line in run.training_lines)
    return f"{asked} round{'' if asked == 1 else 's'} asked it" if asked else "no round asked it"


def departures(run: Run) -> dict[str, Any] | None:
    """Return what left each hospital, for a privacy officer; None before the first round."""
    if not run.rounds:
        return None
    privacy = run.facts.privacy
    spent = {site: one.epsilon for site, one in (privacy.sites or {}).items()}
    sites = sorted({line.site for line in run.rounds})
    lines = [
        {
            "site": site,
            "rounds": sum(line.site == site and line.status in TOOK_PART for line in run.rounds),
            "epsilon": f"{spent[site]:.2f}" if site in spent else "none",
            "results": _results(run, site),
            "kept": str(run.withheld.get(site, "")) or "–",
            "cases": str(sum(run.left_out.get(site, {}).values()) or "–"),
            **moved_bytes(run, site),
        }
        for site in sites
    ]
    names = sorted({name for line in run.rounds for name in line.scalars})
    if run.own:
        names = sorted(name for name in run.own.names if not name.startswith(PREFIX))
    return {"lines": lines, "names": _listed(names), "notes": _privacy_notes(run)}


def _results(run: Run, site: str) -> str:
    """Return how many results over groups of patients are of a hospital, and of how many on risk curves."""
    if run.own:
        own = [name.split("/")[3] for name in run.own.names if _is_result(name)]
    else:
        rows = [row for row in run.rows if row.site == site and row.value is not None]
        own = [row.metric for row in rows if row.against is None]
    curves = sum(metric.startswith(RISK) for metric in own) // len(CUTS)
    risk = f", {curves} risk curve{'s' if curves > 1 else ''}" if curves else ""
    return f"{sum(not metric.startswith(RISK) for metric in own)}{risk}"


def _is_result(name: str) -> bool:
    return name.startswith(PREFIX) and name.endswith("/value")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - MAX_NAMES} more" if len(every) > MAX_NAMES else ""
    return ", ".join(every[:MAX_NAMES]) + more


def _privacy_notes(run: Run) -> list[str]:
    """Return what a privacy officer must know beside the figures."""
    kind = run.study.kind("privacy") or "none"
    notes = [
        "No mechanism protected the updates: whoever receives one may learn about its patients."
        if kind == "none"
        else f"The updates were protected by {kind}."
    ]
    notes += run.facts.privacy.notes
    notes += [
        f"Results are over at least {run.study.min_patients} patients; a hospital's own policy may ask for "
        "more.",
        "A hospital's policy and the approval of this study are in its own audit log (`medfed audit export "
        "LOG --out page.html` shows it); `medfed audit verify` compares the logs of hub and hospitals with "
        "this page.",
        "Images, tables, file names, identifiers and values of single patients are in nothing that leaves.",
    ]
    return notes
