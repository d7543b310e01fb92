"""The report's page: a run's contents, put into the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medfed.evaluation.report import (
    checklists,
    comparison,
    experiments,
    facts,
    glossary,
    guarantees,
    readers,
    rounds,
    spread,
    summary,
    templates,
)
from medfed.evaluation.report.diagrams import diagrams
from medfed.evaluation.report.focus import Focus, focus_of
from medfed.evaluation.report.gallery import read_outlines
from medfed.evaluation.report.headline import sentence
from medfed.evaluation.report.limits import limits
from medfed.evaluation.report.own_report import own_page
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.rows import FEDERATED, personal, read_cases, unperturbed, without
from medfed.evaluation.summarise import summarise
from medfed.files import write_whole
from medfed.runs.folder import RunFolder

# Where the glossary of the terms that a page uses is put in.
GLOSSARY_MARK = "<!--glossary-->"

# The sections of results, which are absent if there is no result to show.
SECTIONS = (
    "comparisons", "measures", "matrix", "diagrams", "subgroups",
    "left_out", "contributions", "difference_methods", "personalised", "robustness", "seeds", "search",
)  # fmt: skip


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path; the rows are summarised first if possible.

    Where the run folder has case rows, `own_report.html` is written too, with single patients: it stays.

    Raises:
        RunError: if the folder is not a run, or one of its files is damaged.
        DataError: if case rows contradict each other.
    """
    folder = RunFolder(run)
    if folder.cases.is_file() or folder.reported.is_file():
        summarise(run)
    contents = read_run(run)
    write_whole(folder.report, render(contents), durable=True)
    if folder.cases.is_file():
        cases = unperturbed(read_cases(folder.cases, model=FEDERATED))
        write_whole(folder.own_report, own_page(contents, cases, read_outlines(folder)), durable=True)
    return folder.report


def render(run: Run) -> str:
    """Return the page."""
    focus = focus_of(run)
    first = sentence(run, focus)
    page = templates.render(
        "page.html.jinja",
        run=run,
        about=run.facts,
        models=run.models,
        time=str(run.study.section("data").get("time") or ""),
        focus=focus,
        metric=focus.record if focus else None,
        sentence=first,
        facts=facts.key_figures(run, focus),
        summary=summary.summary(run, focus),
        spread=spread.spread(run),
        guarantees=guarantees.guarantees(run),
        risk_curves=spread.risk_curves(run),
        guarantee_caveat=guarantees.caveat(run),
        operation=readers.operation(run),
        departures=readers.departures(run),
        methods=readers.methods(run),
        on_all=rounds.on_all_sentence(run),
        curves=rounds.curves(run),
        participation=rounds.participation(run),
        **(dict.fromkeys(SECTIONS) if focus is None else _results(run, focus)),
        cases=facts.case_table(run),
        settings=facts.settings(run),
        limits=limits(run, focus),
        card=checklists.model_card(run, first.text),
        lists=checklists.checklists(run),
        versions=sorted(run.facts.versions.items()),
        images=run.facts.task in ("segment", "classify", "multilabel", "pretrain"),
    )
    terms = templates.render("glossary.html.jinja", terms=glossary.glossary(page))
    # Text of others is escaped, so that the page has this mark once.
    return page.replace(GLOSSARY_MARK, terms)


def _results(run: Run, focus: Focus) -> dict[str, Any]:
    """Return the sections of results, by their names in the template; None or empty without rows."""
    rows, sites = focus.rows(run.rows), run.facts.sites
    return {
        "comparisons": [comparison.comparison(run, focus, rows, site) for site in focus.places],
        "measures": comparison.measures(run, focus),
        "matrix": comparison.matrix(run, focus, rows),
        "diagrams": diagrams(run, focus),
        "subgroups": comparison.subgroup_tables(run, focus),
        "left_out": experiments.against_federated(rows, sites, without),
        "difference_methods": experiments.methods(rows, sites),
        "contributions": experiments.contributions(rows, sites, run.facts.held_out),
        "personalised": experiments.against_federated(rows, sites, personal),
        "robustness": experiments.robustness(rows, focus.places),
        "seeds": experiments.seeds(rows, focus.places, run.models, run.facts.seed),
        "search": experiments.search(run.facts.search or None),
    }
