"""The report's page: a run's contents, put into the template."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfed.evaluation.metrics import metric_of
from medfed.evaluation.report import checklists, comparison, experiments, facts, rounds
from medfed.evaluation.report.diagrams import diagrams
from medfed.evaluation.report.focus import Focus, focus_of
from medfed.evaluation.report.formatting import (
    interval,
    is_small_sample,
    metric_title,
    model_name,
    number,
    p_value,
    site_name,
)
from medfed.evaluation.report.headline import sentence
from medfed.evaluation.report.limits import limits
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.report.templates import environment, style
from medfed.evaluation.rows import FEDERATED
from medfed.evaluation.summarise import summarise
from medfed.files import write_whole
from medfed.runs.folder import RunFolder

if TYPE_CHECKING:
    from jinja2 import Environment


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path; the rows are summarised first if possible.

    Raises:
        RunError: if the folder is not a run, or one of its files is damaged.
        DataError: if case rows contradict each other.
    """
    folder = RunFolder(run)
    if folder.cases.is_file() or folder.reported.is_file():
        summarise(run)
    write_whole(folder.report, render(read_run(run)), durable=True)
    return folder.report


def render(run: Run) -> str:
    """Return the page."""
    focus = focus_of(run)
    first = sentence(run, focus)
    page = (
        _environment(run)
        .get_template("page.html.jinja")
        .render(
            style=style(),
            run=run,
            about=run.facts,
            models=run.models,
            focus=focus,
            metric=focus.record if focus else None,
            sentence=first,
            facts=facts.key_figures(run, focus),
            curves=rounds.curves(run),
            participation=rounds.participation(run),
            **_results(run, focus),
            cases=facts.case_table(run),
            settings=facts.settings(run),
            limits=limits(run, focus),
            card=checklists.model_card(run, first.text),
            lists=checklists.checklists(run),
            versions=sorted(run.facts.versions.items()),
            images=run.facts.task in ("segment", "classify"),
        )
    )
    return page if page.endswith("\n") else page + "\n"


def _environment(run: Run) -> Environment:
    template_environment = environment()
    template_environment.globals.update(
        number=number,
        interval=interval,
        metric_of=metric_of,
        model_name=model_name,
        site_name=site_name,
        p_value=p_value,
        FEDERATED=FEDERATED,
        is_small_sample=is_small_sample,
        metric_title=partial(metric_title, time=str(run.study.section("data").get("time") or "")),
    )
    return template_environment


def _results(run: Run, focus: Focus | None) -> dict[str, Any]:
    """Return the sections of results, by their names in the template; those without results
    are None or empty.
    """
    if focus is None:
        names = ("comparisons", "measures", "matrix", "diagrams", "subgroups")
        more = ("left_out", "contributions", "difference_methods", "personalised", "robustness")
        return dict.fromkeys((*names, *more))
    rows, sites = focus.rows(run.rows), run.facts.sites
    return {
        "comparisons": [comparison.comparison(run, focus, rows, site) for site in focus.places],
        "measures": comparison.measures(run, focus),
        "matrix": comparison.matrix(run, focus, rows),
        "diagrams": diagrams(run, focus),
        "subgroups": comparison.subgroup_tables(run, focus),
        "left_out": experiments.left_out(rows, sites),
        "difference_methods": experiments.methods(rows, sites),
        "contributions": experiments.contributions(rows, sites, run.facts.held_out),
        "personalised": experiments.personalised(rows, sites),
        "robustness": experiments.robustness(rows, focus.places),
    }
