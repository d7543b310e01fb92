"""The report's first sentence: the finding, its interval, its patients, and what it compares with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from medfed.evaluation.metrics import Metric, metric_of
from medfed.evaluation.patients import OVERLAP, RIGHTLY_EMPTY
from medfed.evaluation.report.focus import Focus, FocusRows, focus_of, focus_on
from medfed.evaluation.report.formatting import interval, is_narrow, number, p_value
from medfed.evaluation.report.limits import without_structure
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.rows import ALL_SITES, FEDERATED, SITE_MEAN, Row


class Sentence(NamedTuple):
    """The text before the value, the value, the text after it, and a second sentence."""

    before: str
    value: str
    after: str
    second: str

    @property
    def text(self) -> str:
        """Both sentences as one line."""
        return f"{self.before}{self.value}{self.after} {self.second}".strip()


def headline(run: Path, site: str | None = None) -> str:
    """Return a run's finding as one line for the terminal; of `site`, if one is named, and of no other."""
    contents = read_run(run)
    if site is None:
        return sentence(contents, focus_of(contents)).text
    own = [row for row in contents.rows if row.site == site]
    focus = focus_on(own, [site])
    parts = [sentence(contents, focus).text] if focus is not None else []
    undrawn = without_structure(own, focus.split) if focus is not None else []
    return " ".join([*parts, *_withheld(own, site, focus is None), *undrawn, *_warnings(contents, site)])


def _withheld(own: list[Row], site: str, nothing: bool) -> list[str]:
    """Return what of a hospital's results is not shown, and why; of subgroups their number."""
    empty = {row.structure for row in own if row.metric == OVERLAP and row.n == 0}
    hidden = [row for row in own if row.value is None and row.model == FEDERATED]
    # Where nobody has a structure nothing is withheld: there is nothing to measure (`without_structure`).
    hidden = [row for row in hidden if row.structure not in empty or "fewer than" in (row.note or "")]
    reasons = {row.metric: row.note or "" for row in hidden if row.group is None}
    groups = {(row.metric, row.group) for row in hidden if row.group is not None}
    if nothing:
        why = reasons.get("patients") or next(iter(reasons.values()), "nothing was measured")
        return [f"No result at {site} may be shown: {why}. `cases.jsonl` has each patient's, and stays here."]
    shown = {metric_of(name).title: note for name, note in reasons.items()}
    listed = [f"{title} ({note})" for title, note in sorted(shown.items())]
    if groups:
        listed.append(f"{len(groups)} results of subgroups")
    return [f"Not shown at {site}: {', '.join(listed)}."] if listed else []


def _warnings(run: Run, site: str) -> list[str]:
    return [f"{one[0].upper()}{one[1:].rstrip('.')}." for one in run.facts.warnings.get(site, [])]


def sentence(run: Run, focus: Focus | None) -> Sentence:
    """Return the finding, with its interval, its hospital, its patients and what it compares with."""
    if focus is None or not focus.places:
        return Sentence("This run has no result of the federated model that may be shown.", "", "", "")
    metric, site, rows = focus.record, focus.places[0], focus.rows(run.rows)
    row = rows.get(site, FEDERATED)
    assert row is not None
    fine = is_narrow(row)
    unit = f" {metric.unit}" if metric.unit else ""
    spread = f" (95 % CI {interval(row, fine=fine)})" if row.low is not None else ""
    structures = {row.structure for row in run.rows if row.metric == focus.metric and row.structure}
    structure = f" for {focus.structure}" if focus.structure and len(structures) > 1 else ""
    split = "validation" if focus.split == "val" else focus.split
    suffix = "" if focus.split == "test" else f", {split} split"
    suffix += f", cross-validated in {run.facts.folds.of} folds" if run.facts.folds else ""
    after = f"{unit}{spread}{structure} {_where(run, site)}, in {_patients(run, focus, row)}{suffix}"
    after += f"{_macro_mean(rows, row, metric)}."
    value = number(row.value, metric, fine=fine)
    return Sentence(f"Federated model: {metric.title} ", value, after, _best_local(run, rows, row, metric))


def _where(run: Run, site: str) -> str:
    if site in run.facts.held_out:
        if run.facts.seen.get(site):
            return f"at {site}, in patients who took no part in training"
        return f"at {site}, a hospital that took no part in training"
    if site == SITE_MEAN:
        return "as the mean of the study's hospitals, each counting alike"
    return "over all hospitals of the study" if site == ALL_SITES else f"at {site}"


def _macro_mean(rows: FocusRows, row: Row, metric: Metric) -> str:
    """Return the mean over hospitals beside a mean over all their patients."""
    mean = rows.valued(SITE_MEAN, FEDERATED) if row.site == ALL_SITES else None
    return (
        f"; each hospital counting alike, {number(mean.value, metric, fine=is_narrow(row))}" if mean else ""
    )


def _best_local(run: Run, rows: FocusRows, federated: Row, metric: Metric) -> str:
    """Return what the best model of a single hospital reaches, and the difference to it."""
    models = sorted({row.model for row in run.rows if row.model.startswith("local:")})
    known = [row for model in models if (row := rows.valued(federated.site, model)) is not None]
    if not known:
        return ""
    best = (min if metric.better == "lower" else max)(known, key=lambda row: row.value or 0.0)
    difference = rows.valued(federated.site, FEDERATED, against=best.model)
    alone = "the best model that a single hospital trained alone"
    if difference is None:
        return f"T{alone[1:]} reaches {number(best.value, metric, fine=is_narrow(federated))}."
    # If a model lacks some patients, the two means don't subtract, and the other one is not given.
    if best.n == federated.n == difference.n:
        text = f"T{alone[1:]} reaches {number(best.value, metric, fine=is_narrow(federated))}"
        text += "; the difference, paired by patient, is "
    else:
        text = (
            f"Against {alone} the difference, in the {difference.n} patients in whom either has a value, is "
        )
    text += number(difference.value, metric, sign=True)
    if difference.low is not None:
        text += f" (95 % CI {interval(difference, sign=True)})"
    if difference.p is not None:
        text += f", p {'' if difference.p < 0.001 else '= '}{p_value(difference.p)}"
        holm = difference.p_holm
        text += f" ({p_value(holm)} after Holm's correction)" if holm is not None else ""
    return f"{text}."


def _patients(run: Run, focus: Focus, row: Row) -> str:
    """Return how many patients were tested, how many the value is of, and what became of the others."""
    text = f"{row.n} patient{'s' if row.n != 1 else ''}"
    everyone = focus._replace(metric="patients", structure=None).rows(run.rows).valued(row.site, row.model)
    empty = focus._replace(metric=RIGHTLY_EMPTY).rows(run.rows).valued(row.site, row.model)
    if focus.metric == RIGHTLY_EMPTY:
        return f"{text} without {focus.structure or 'the structure'}"
    if everyone is not None and empty is not None and everyone.n != row.n:
        right = round((empty.value or 0.0) * (empty.n or 0))
        with_it = f"{row.n} with {focus.structure or 'a structure'}"
        text = f"{everyone.n} patients, {with_it}, {right} of {empty.n} without rightly left empty"
    events = focus._replace(metric="events").rows(run.rows).valued(row.site, row.model)
    if events is None:
        return text
    return f"{text} with {events.value:.0f} event{'s' if events.value != 1 else ''}"
