"""Aggregation of case rows to rows per hospital, with intervals and suppression of small groups.

The images of each patient are averaged first; `n` counts patients, and patients are resampled. The hospitals
of the study are also pooled as the site "all", without hospitals that took no part in training.

**Small groups.** A hospital with fewer than `min_patients` patients in a split is suppressed together with
the next smallest hospital, so that its row cannot be computed by subtracting the others from "all". Metrics
that depend on the outcome, such as sensitivity and AUROC, are suppressed if either outcome has fewer than
`min_patients` patients.

**Absence.** Each mean comes with counts of structures that are missed, false positive ("invented") or absent
in both masks (see `segmentation`). The mean distance covers structures that both masks contain, and its note
states the exclusions; the median counts missed and false-positive structures as infinite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from medfed.evaluation.groups import estimates, group_of
from medfed.evaluation.intervals import Interval, suppressed_groups
from medfed.evaluation.metrics import (
    ClassGroup,
    FindingsGroup,
    OperatingPoints,
    SurvivalGroup,
    SurvivalMetrics,
    families,
    metric_of,
)
from medfed.evaluation.patients import Patients, SummarySettings, by_patient
from medfed.evaluation.probabilities import group_by_model, operating_points
from medfed.evaluation.row_factory import RowFactory, mark_wide
from medfed.evaluation.rows import ALL_SITES, CaseRow, Row, unperturbed


def aggregate(cases: Iterable[CaseRow], settings: SummarySettings) -> list[Row]:
    """Return the rows of every model and split, for each hospital and for the study's hospitals pooled.

    The cases belong to one round, and to all hospitals (in a simulation) or to one hospital.
    Perturbed cases are excluded.
    """
    everything = unperturbed(cases)
    points = operating_points(everything, settings.classes)
    suppressed = suppressed_sites(everything, settings)
    rows = []
    for (model, split), some in group_by_model(everything).items():
        for site, patients in _sites(some, settings.held_out):
            factory = RowFactory(settings.round, site, split, model)
            if (site, split) in suppressed:
                note = f"fewer than {settings.min_patients} patients, or suppressed to protect such a site"
                rows.append(factory.suppressed("patients", note))
                continue
            rows += _summarise(factory, by_patient(patients), points.get(model), settings)
    return rows


def suppressed_sites(cases: Iterable[CaseRow], settings: SummarySettings) -> set[tuple[str, str]]:
    """Return the (site, split) pairs to suppress: small ones, and those that would reveal a small one."""
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases:
        patients[case.site, case.split].add(case.patient)
    suppressed = set()
    for split in {split for _, split in patients}:
        sizes = {site: len(names) for (site, its), names in patients.items() if its == split}
        pooled = {site: size for site, size in sizes.items() if site not in settings.held_out}
        small = {site for site in sizes.keys() - pooled.keys() if sizes[site] < settings.min_patients}
        suppressed |= {(site, split) for site in small | suppressed_groups(pooled, settings.min_patients)}
        if sum(pooled.values()) < settings.min_patients:
            suppressed.add((ALL_SITES, split))
    return suppressed


def _sites(cases: list[CaseRow], held_out: Sequence[str]) -> list[tuple[str, list[CaseRow]]]:
    names = sorted({case.site for case in cases})
    sites = [(name, [case for case in cases if case.site == name]) for name in names]
    pooled = [case for case in cases if case.site not in held_out]
    if len({case.site for case in pooled}) > 1:
        sites.append((ALL_SITES, pooled))
    return sites


def _summarise(
    factory: RowFactory, patients: Patients, points: OperatingPoints | None, settings: SummarySettings
) -> list[Row]:
    number = len(patients.patients)
    rows = [factory.row("patients", None, Interval(float(number), None, None, number, ""), number)]
    group = group_of(patients, settings, points)
    if isinstance(group, ClassGroup):
        return rows + _classified(factory, group, settings.min_patients)
    if isinstance(group, FindingsGroup):
        return rows + _of_findings(factory, group, settings.min_patients)
    if isinstance(group, SurvivalGroup) and int(group.patients.events.sum()) < settings.min_patients:
        headline = families(SurvivalMetrics)[0].metrics[0].name
        return [*rows, factory.suppressed(headline, f"fewer than {settings.min_patients} events", number)]
    return rows + [
        factory.row(metric, structure, mark_wide(metric, interval), interval.n)
        for metric, structure, interval in estimates(group)
    ]


def _classified(factory: RowFactory, group: ClassGroup, min_patients: int) -> list[Row]:
    """Return a classifier's rows; metrics by outcome are suppressed if an outcome has too few patients."""
    patients = len(group.y)
    outcomes = dict(zip(group.names, group.outcomes(), strict=True))
    rows = []
    for metric, structure, interval in estimates(group):
        if structure is None and not group.binary:
            fewest = min(outcomes.values())
        else:
            positives = outcomes[structure or group.names[1]]
            fewest = min(positives, patients - positives)
        if fewest < min_patients and metric_of(metric).by_outcome:
            note = f"fewer than {min_patients} patients with or without the class"
            rows.append(factory.suppressed(metric, note, patients, structure))
        else:
            shown = mark_wide(metric, _with_denominator(interval, patients))
            rows.append(factory.row(metric, structure, shown, patients))
    return rows


def _of_findings(factory: RowFactory, group: FindingsGroup, min_patients: int) -> list[Row]:
    """Return the rows of several findings; those of a finding with too few patients are suppressed.

    The means over findings leave such findings out by themselves.
    """
    outcomes = {name: group.outcomes(number) for number, name in enumerate(group.names)}
    rows = []
    for metric, structure, interval in estimates(group):
        fewest, labelled = min_patients, interval.n
        if structure is not None:
            labelled = sum(outcomes[structure])
            fewest = min(outcomes[structure]) if metric_of(metric).by_outcome else labelled
        if fewest < min_patients:
            note = f"fewer than {min_patients} patients with or without the finding"
            rows.append(factory.suppressed(metric, note, structure=structure))
        else:
            shown = mark_wide(metric, _with_denominator(interval, labelled))
            rows.append(factory.row(metric, structure, shown, labelled))
    return rows


def _with_denominator(interval: Interval, patients: int) -> Interval:
    """Add a proportion's denominator to its method if it differs from the number of patients."""
    if interval.value is None or interval.n == patients:
        return interval
    successes = int(interval.value * interval.n + 0.5)
    return interval._replace(method=f"{interval.method}; {successes} of {interval.n}")
