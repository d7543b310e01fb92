"""The report's first sentence: the finding, its interval, its patients, and what it compares with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from medfed.evaluation.metrics import Metric
from medfed.evaluation.report.focus import Focus, FocusRows, focus_of
from medfed.evaluation.report.formatting import interval, is_narrow, number, p_value
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.rows import ALL_SITES, FEDERATED, Row


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


def headline(run: Path) -> str:
    """Return a run's finding as one line for the terminal."""
    contents = read_run(run)
    return sentence(contents, focus_of(contents)).text


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
    after = f"{unit}{spread}{structure} {_where(run, site)}, in {_patients(run, focus, row)}{suffix}."
    value = number(row.value, metric, fine=fine)
    return Sentence(f"Federated model: {metric.title} ", value, after, _best_local(run, rows, row, metric))


def _where(run: Run, site: str) -> str:
    if site in run.facts.held_out:
        return f"at {site}, a hospital that took no part in training"
    return "over all hospitals of the study" if site == ALL_SITES else f"at {site}"


def _best_local(run: Run, rows: FocusRows, federated: Row, metric: Metric) -> str:
    """Return what the best model of a single hospital reaches, and the difference to it."""
    models = sorted({row.model for row in run.rows if row.model.startswith("local:")})
    known = [row for model in models if (row := rows.valued(federated.site, model)) is not None]
    if not known:
        return ""
    best = (min if metric.better == "lower" else max)(known, key=lambda row: row.value or 0.0)
    text = "The best model that a single hospital trained alone reaches "
    text += number(best.value, metric, fine=is_narrow(federated))
    difference = rows.valued(federated.site, FEDERATED, against=best.model)
    if difference is not None:
        # On cases without the structure a model has a Dice only if it invents one. The two means are then
        # over different patients, and the difference is over those that both have.
        other_patients = best.n != federated.n
        text += f" in {best.n}" if other_patients else ""
        text += f"; the difference, paired by patient{f' in {difference.n}' if other_patients else ''}, is "
        text += number(difference.value, metric, sign=True)
        if difference.low is not None:
            text += f" (95 % CI {interval(difference, sign=True)})"
        if difference.p is not None:
            text += f", p {'' if difference.p < 0.001 else '= '}{p_value(difference.p)}"
    return f"{text}."


def _patients(run: Run, focus: Focus, row: Row) -> str:
    text = f"{row.n} patient{'s' if row.n != 1 else ''}"
    events = focus._replace(metric="events").rows(run.rows).valued(row.site, row.model)
    if events is None:
        return text
    return f"{text} with {events.value:.0f} event{'s' if events.value != 1 else ''}"
