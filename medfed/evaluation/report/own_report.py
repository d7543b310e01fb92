"""The owner's page: contours of the worst and the median case, and every patient's value. It stays.

`own_report.html` is written beside `report.html` where the case rows are: at the hospital that measured, and
by whoever simulates. It holds single patients' values and shapes, without images, names or tokens.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from medfed.evaluation.metrics import metric_of
from medfed.evaluation.patients import FINDING, OVERLAP, PROBABILITY, RISK
from medfed.evaluation.report import charts
from medfed.evaluation.report.focus import focus_of
from medfed.evaluation.report.gallery import Outlined
from medfed.evaluation.report.headline import sentence
from medfed.evaluation.report.run import Run
from medfed.evaluation.report.templates import render
from medfed.evaluation.rows import FEDERATED, CaseRow
from medfed.evaluation.segmentation import FALSE_POSITIVE

# Limits of agreement of fewer patients would be those patients.
MIN_LIMITS = 10
_SIZES = re.compile(r"(volume|area)_difference_(.+)")

# A patient's group in a swarm, and its value; of a patient's images the mean.
Values = dict[tuple[str, str], dict[str, list[float]]]


def own_page(run: Run, cases: Iterable[CaseRow], outlined: Sequence[Outlined]) -> str:
    """Return the page of a run's unperturbed cases."""
    ours = [
        case for case in cases if case.model == FEDERATED and case.split == "test" and case.value is not None
    ]
    return render(
        "own_report.html.jinja",
        study=run.facts.study or "Federated study",
        sentence=sentence(run, focus_of(run)),
        outlined=outlined,
        swarms=swarms(ours),
        agreements=agreements(ours),
    )


def swarms(cases: Sequence[CaseRow]) -> list[dict[str, Any]]:
    """Return a figure per structure, class or finding: each patient's value, by hospital and outcome."""
    values: Values = defaultdict(lambda: defaultdict(list))
    binary = len({case.structure for case in cases if case.metric == PROBABILITY}) == 2
    names = list(dict.fromkeys(case.structure for case in cases if case.metric == PROBABILITY))
    titles: dict[str, str] = {}
    for case in cases:
        if case.metric not in (OVERLAP, PROBABILITY, FINDING, RISK):
            continue
        if case.metric == PROBABILITY and binary and case.structure == names[0]:
            continue  # one minus the other class
        title = f"{case.structure or ''} {_label(case.metric)}".strip()
        titles[title] = case.metric
        values[title, f"{case.site}{_outcome(case)}"][case.patient].append(case.value or 0.0)
    return [{"title": title, "figure": _swarm(title, metric, values)} for title, metric in titles.items()]


def _swarm(title: str, metric: str, values: Values) -> str:
    groups = [
        (name, [mean(some) for some in by_patient.values()])
        for (its, name), by_patient in sorted(values.items())
        if its == title
    ]
    known = metric_of(metric)
    every = [value for _, some in groups for value in some]
    bounds = (
        (known.lowest, known.highest) if metric == OVERLAP else (None, None) if metric == RISK else (0.0, 1.0)
    )
    axis = charts.span(every, *bounds) if metric == RISK else (0.0, 1.0)
    counts = "; ".join(f"{name}: {len(some)} patients" for name, some in groups)
    return charts.swarm(f"{title}, {counts}", groups, axis, title)


def _label(metric: str) -> str:
    return {PROBABILITY: "probability", FINDING: "probability", RISK: "log risk"}.get(
        metric, metric_of(metric).title
    )


def _outcome(case: CaseRow) -> str:
    if case.note == FALSE_POSITIVE:
        return ", has it not"  # in no mean of the report: no overlap can be measured in such a patient
    if case.metric == RISK:
        return ", event" if case.event else ", censored"
    return "" if case.target is None else ", has it" if case.target else ", has it not"


def agreements(cases: Sequence[CaseRow]) -> list[dict[str, Any]]:
    """Return a Bland-Altman plot of each structure's size, predicted minus reference."""
    table: dict[tuple[str, str, str], dict[tuple[str, str], CaseRow]] = defaultdict(dict)
    by_name = {(case.site, case.case, case.structure, case.metric): case for case in cases}
    for case in cases:
        if found := _SIZES.fullmatch(case.metric):
            table[case.structure or "", *found.groups()][case.site, case.case] = case  # type: ignore[index]
    plots = []
    for (structure, size, unit), differences in sorted(table.items()):
        points = []
        for case in differences.values():
            reference = by_name.get((case.site, case.case, case.structure, f"reference_{size}_{unit}"))
            if reference is not None:
                points.append(((reference.value or 0.0) + (case.value or 0.0) / 2, case.value or 0.0))
        if not points:
            continue
        labels = f"mean of predicted and reference {size}, {unit}", f"predicted minus reference, {unit}"
        title = f"{structure} {size}: {len(points)} cases"
        plots.append({"title": title, "figure": charts.agreement(title, points, limits_of(points), labels),
                      "limits": limits_of(points)})  # fmt: skip
    return plots


def limits_of(points: Sequence[charts.Point]) -> tuple[float, float, float] | None:
    """Return lower limit, mean and upper limit of agreement (Bland and Altman 1986), from ten cases up."""
    differences = [y for _, y in points]
    if len(differences) < MIN_LIMITS:
        return None
    middle, half = mean(differences), 1.96 * stdev(differences)
    return middle - half, middle, middle + half
