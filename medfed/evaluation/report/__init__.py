"""A run folder becomes one HTML file that a clinician, a statistician and a reviewer can each read.

`write_report(run)` reads what the run wrote (rows, rounds, settings) and nothing else; every number in the
page is a row's number. The file needs no network, has no script, prints, follows the reader's light or dark
setting, and is the same bytes for the same run. It holds no case id and no patient's row.

    page            the page and its template
    run             what is read from a run folder
    focus           the metric, structure and hospitals that the report is about
    summary         the clinician's page
    headline        the first sentence, also for the terminal
    facts           key figures, cases and settings
    comparison      models against each other
    guarantees      thresholds that each hospital may rely on
    own_report      contours and every patient's value; this file stays in the hospital
    own_values      what only the owner of the data sees
    experiments     hospitals left out, personal models, robustness
    rounds          scores and participation
    diagrams        ROC, reliability and decision curves
    readers         for statistician, operator and privacy officer
    glossary        words, on hover and in print
    limits          what the run cannot show
    checklists      model card, CLAIM and TRIPOD+AI
    formatting      numbers and names as text
    charts          SVG figures
    run_comparison  several runs side by side
    method_table    several methods of one study
    gallery         images of single cases; this file stays in the hospital
"""

from __future__ import annotations

from medfed.evaluation.report.headline import headline
from medfed.evaluation.report.page import render, write_report
from medfed.evaluation.report.run import Run, read_run

__all__ = ["Run", "headline", "read_run", "render", "write_report"]
