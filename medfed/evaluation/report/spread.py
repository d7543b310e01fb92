"""How results spread over patients, as points that are groups of them, and the risk curves of guarantees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from medfed.evaluation.conformal import CUTS
from medfed.evaluation.guarantees import RISK as RISK_PREFIX
from medfed.evaluation.histograms import ScoreHistogram
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.patient_groups import PatientGroups
from medfed.evaluation.patients import OVERLAP, RISK
from medfed.evaluation.report import charts
from medfed.evaluation.report.formatting import site_name
from medfed.evaluation.report.guarantees import title
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import FEDERATED, Row


def spread(run: Run) -> dict[str, Any] | None:
    """Return swarms of groups by hospital, and Bland-Altman plots of groups; None if there is neither."""
    swarms = [*_swarms(run.groups), *_of_probabilities(run.curves)]
    plots = _agreements(run.groups, run.rows)
    return (
        {"swarms": swarms, "agreements": plots, "least": run.study.min_patients} if swarms or plots else None
    )


def _swarms(groups: Sequence[PatientGroups]) -> list[dict[str, str]]:
    by_measure: dict[tuple[str, str], list[PatientGroups]] = defaultdict(list)
    for one in groups:
        if one.metric in (OVERLAP, RISK):
            by_measure[one.structure or "", one.metric].append(one)
    drawn = []
    for (structure, metric), some in sorted(by_measure.items()):
        label = "log risk" if metric == RISK else metric_of(metric).title
        name = f"{structure} {label}".strip()
        lines = [(_line(one), [point.value for point in one.points]) for one in some]
        every = [value for _, values in lines for value in values]
        axis = charts.span(every, None, None) if metric == RISK else (0.0, 1.0)
        patients = sum(point.n for one in some for point in one.points)
        missed = sum(one.left_out for one in some)
        note = f"{name}: {patients} patients in {len(every)} groups"
        if missed:
            note += f"; {missed} missed, not drawn: their {label} is 0"
        drawn.append({"figure": charts.swarm(note, lines, axis, name), "note": note})
    return drawn


def _line(one: PatientGroups) -> str:
    return f"{one.site}, {one.outcome}" if one.outcome else site_name(one.site)


def _of_probabilities(curves: Sequence[ScoreHistogram]) -> list[dict[str, str]]:
    """Return a swarm per class of the bins of predicted risk, filled where most patients have the class."""
    by_class: dict[str, list[ScoreHistogram]] = defaultdict(list)
    for one in curves:
        if one.model == FEDERATED and one.split == "test":
            by_class[one.structure or ""].append(one)
    drawn = []
    for structure, some in sorted(by_class.items()):
        bins = [(one.site, [cell for cell in one.bins if cell.n]) for one in some]
        lines = [(site, [cell.risk / cell.n for cell in cells]) for site, cells in bins]
        ill = [[2 * cell.positives > cell.n for cell in cells] for _, cells in bins]
        name = f"{structure} predicted risk".strip()
        patients = sum(cell.n for _, cells in bins for cell in cells)
        note = f"{name}: {patients} patients in {sum(map(len, ill))} groups"
        note += "; filled where most have it, else hollow"
        drawn.append({"figure": charts.swarm(note, lines, (0.0, 1.0), name, ill), "note": note})
    return drawn


def _agreements(groups: Sequence[PatientGroups], rows: Iterable[Row]) -> list[dict[str, str]]:
    """Return a Bland-Altman plot per hospital and structure; the limits are those of single patients."""
    known = {
        (row.site, row.structure, row.metric): row.value
        for row in rows
        if (row.model, row.split, row.group, row.against) == (FEDERATED, "test", None, None)
    }
    drawn = []
    for one in groups:
        if "_difference_" not in one.metric:
            continue
        size, _, unit = one.metric.partition("_difference_")
        names = (
            one.metric.replace("difference", "limit_low"),
            one.metric,
            one.metric.replace("difference", "limit_high"),
        )
        low, middle, high = (known.get((one.site, one.structure, name)) for name in names)
        bounds = None if low is None or middle is None or high is None else (low, middle, high)
        patients = sum(point.n for point in one.points)
        note = f"{one.structure or size} at {one.site}: {patients} patients in {len(one.points)} groups"
        note += f"; {one.left_out} {one.why} not drawn" if one.left_out else ""
        labels = f"mean of predicted and reference {size}, {unit}", f"predicted minus reference, {unit}"
        points = [(point.size or 0.0, point.value) for point in one.points]
        drawn.append({"figure": charts.agreement(note, points, bounds, labels), "note": note})
    return drawn


def risk_curves(run: Run) -> list[dict[str, str]]:
    """Return a diagram per guarantee and hospital: the share of patients failed at each threshold."""
    curves: dict[tuple[str, str | None, str], dict[float, Row]] = defaultdict(dict)
    latest = max((row.round for row in run.rows if row.metric.startswith(RISK_PREFIX)), default=0)
    for row in run.rows:
        if row.metric.startswith(RISK_PREFIX) and row.round == latest and row.value is not None:
            kind, _, cut = row.metric.removeprefix(RISK_PREFIX).partition("@")
            curves[kind, row.structure, row.site][float(cut)] = row
    allowed = 1.0 - float(run.study.section("evaluation").get("guarantee") or 0.0)
    drawn = []
    for (kind, structure, site), by_cut in sorted(curves.items(), key=str):
        points = [(cut, by_cut[cut].value or 0.0) for cut in CUTS if cut in by_cut]
        n = max((row.n or 0 for row in by_cut.values()), default=0)
        what = title(run, kind, structure)
        figure = charts.square(
            f"Risk curve at {site}: {what}",
            ("Threshold", "Share failed, upper bound"),
            [("dashed", [(0.0, allowed), (1.0, allowed)]), ("strong", points)],
        )
        drawn.append({"figure": figure, "note": f"{site}, {n} validation patients. {what}."})
    return drawn
