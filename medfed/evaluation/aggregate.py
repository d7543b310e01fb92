"""Aggregation of case rows to rows per hospital, with intervals and suppression of small groups.

The images of each patient are averaged first; `n` counts patients, and patients are resampled. The hospitals
of the study are also pooled as the site "all", without hospitals that took no part in training.

**Small groups.** A hospital with fewer than `min_patients` patients in a split is suppressed together with
the next smallest hospital, so that its row cannot be computed by subtracting the others from "all". So is
each metric that is over fewer patients than the hospital has (with the structure, or of the rarer outcome).
`disclosure` says what is withheld and why.

**Absence.** Each mean comes with counts of structures that are missed, false positive ("invented") or absent
in both masks (see `segmentation`). An overlap is over patients with the structure, and has a specificity over
the others beside it: where nobody has the structure, or nobody drew it, there is no Dice. The mean distance
covers structures that both masks contain, and its note states the exclusions; the median counts missed and
false-positive structures as infinite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from medfed.evaluation.disclosure import is_too_few, suppressed_sites, withheld_sites
from medfed.evaluation.groups import Group, estimates, group_of, open_patients, patients_behind
from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import (
    CaseGroup,
    ClassGroup,
    FindingsGroup,
    OperatingPoints,
    SurvivalGroup,
    SurvivalMetrics,
    families,
)
from medfed.evaluation.patients import Patients, SummarySettings, by_patient
from medfed.evaluation.probabilities import group_by_model, operating_points
from medfed.evaluation.row_factory import RowFactory, mark_wide
from medfed.evaluation.rows import ALL_SITES, CaseRow, Row, unperturbed

# The split, metric and structure of a value, which decide together where it is withheld.
Measure = tuple[str, str, str | None]


class Measurement(NamedTuple):
    """A row before small groups are withheld: the fewest patients it says something of, and who they are.

    `patients` is None for a row that counts patients or has no value. `open` is how many of them have a value
    that the counts of absences do not give away (`patients.is_open`).
    """

    row: Row
    patients: int | None
    whom: str = ""
    open: int = 0

    @property
    def lacks_outcome(self) -> bool:
        """Whether it needs patients of both outcomes, and none is of one."""
        return bool(self.whom) and self.patients == 0

    @property
    def measure(self) -> Measure:
        """What decides where the row is withheld."""
        return self.row.split, self.row.metric, self.row.structure


def aggregate(cases: Iterable[CaseRow], settings: SummarySettings) -> list[Row]:
    """Return the rows of every model and split, for each hospital and for the study's hospitals pooled.

    The cases belong to one round, and to all hospitals (in a simulation) or to one hospital.
    Perturbed cases are excluded.
    """
    everything = unperturbed(cases)
    points = operating_points(everything, settings.classes)
    measurements: list[Measurement] = []
    for (model, split), some in group_by_model(everything).items():
        for site, patients in _sites(some, settings.held_out):
            factory = RowFactory(settings.round, site, split, model)
            measurements += _summarise(factory, by_patient(patients), points.get(model), settings)
    return _without_suppressed(
        measurements, suppressed_sites(everything, settings.held_out, settings.min_patients), settings
    )


def _without_suppressed(
    measurements: Sequence[Measurement], suppressed: set[tuple[str, str]], settings: SummarySettings
) -> list[Row]:
    """Return the rows, without those of suppressed hospitals and without values that are withheld."""
    withheld, given_away = withheld_measures(measurements, settings), withheld_models(measurements, settings)
    few = f"fewer than {settings.min_patients} patients"
    rows = []
    for one in measurements:
        row = one.row
        if (row.site, row.split) in suppressed:
            if row.metric == "patients":
                note = f"{few}, or suppressed to protect such a site"
                rows.append(
                    RowFactory(row.round, row.site, row.split, row.model).suppressed("patients", note)
                )
        elif one.patients is not None and (one.lacks_outcome or row.site in withheld.get(one.measure, ())):
            own = one.lacks_outcome or is_too_few(one.patients, settings.min_patients)
            note = f"{few}{one.whom}" if own else f"would give that of {few} elsewhere"
            rows.append(RowFactory(row.round, row.site, row.split, row.model).suppressed(
                row.metric, note, structure=row.structure
            ))  # fmt: skip
        elif one.patients is not None and row.site in given_away.get((row.model, one.measure), ()):
            own = is_too_few(one.open, settings.min_patients)
            note = f"{few} in whom it is not 0" if own else f"would give that of {few} elsewhere"
            factory = RowFactory(row.round, row.site, row.split, row.model)
            rows.append(factory.suppressed(row.metric, note, structure=row.structure))
        else:
            rows.append(row)
    return rows


def withheld_measures(
    measurements: Iterable[Measurement], settings: SummarySettings
) -> Mapping[Measure, set[str]]:
    """Return the sites at which each measure is withheld, for all models alike."""
    sizes: dict[Measure, dict[str, int]] = defaultdict(dict)
    for one in measurements:
        if one.patients:
            by_site = sizes[one.measure]
            by_site[one.row.site] = min(one.patients, by_site.get(one.row.site, one.patients))
    return {
        measure: withheld_sites(by_site, settings.held_out, settings.min_patients)
        for measure, by_site in sizes.items()
    }


def withheld_models(
    measurements: Iterable[Measurement], settings: SummarySettings
) -> Mapping[tuple[str, Measure], set[str]]:
    """Return the sites at which one model's measure is withheld, as counts of absences give the others' part.

    Of each model alone: a model that missed nearly all must not hide those that did not.
    """
    sizes: dict[tuple[str, Measure], dict[str, int]] = defaultdict(dict)
    for one in measurements:
        if one.open:
            sizes[one.row.model, one.measure][one.row.site] = one.open
    return {key: withheld_sites(by, settings.held_out, settings.min_patients) for key, by in sizes.items()}


def _sites(cases: list[CaseRow], held_out: Sequence[str]) -> list[tuple[str, list[CaseRow]]]:
    names = sorted({case.site for case in cases})
    sites = [(name, [case for case in cases if case.site == name]) for name in names]
    pooled = [case for case in cases if case.site not in held_out]
    if len({case.site for case in pooled}) > 1:
        sites.append((ALL_SITES, pooled))
    return sites


def _summarise(
    factory: RowFactory, patients: Patients, points: OperatingPoints | None, settings: SummarySettings
) -> list[Measurement]:
    number = len(patients.patients)
    counted = factory.row("patients", None, Interval(float(number), None, None, number, ""), number)
    group = group_of(patients, settings, points)
    if isinstance(group, SurvivalGroup) and int(group.patients.events.sum()) < settings.min_patients:
        headline = families(SurvivalMetrics)[0].metrics[0].name
        note = f"fewer than {settings.min_patients} events"
        return [Measurement(counted, None), Measurement(factory.suppressed(headline, note, number), None)]
    return [
        Measurement(counted, None),
        *(_measurement(factory, group, *estimate, settings) for estimate in estimates(group)),
    ]


def _measurement(
    factory: RowFactory,
    group: Group,
    metric: str,
    structure: str | None,
    interval: Interval,
    settings: SummarySettings,
) -> Measurement:
    """Return one metric's row, and the fewest patients that it says something of."""
    number, whom = interval.n, ""
    if isinstance(group, ClassGroup):
        number, whom = len(group.y), " with or without the class"
    elif isinstance(group, FindingsGroup):
        whom = " with or without the finding"
        if structure is not None:
            number = sum(group.outcomes(group.names.index(structure)))
    if isinstance(group, (ClassGroup, FindingsGroup)):
        interval = _with_denominator(interval, number)
    row = factory.row(metric, structure, mark_wide(metric, interval), number)
    if interval.value is None and not whom:
        return Measurement(row, None)
    behind = patients_behind(group, metric, structure, settings.min_patients)
    if isinstance(group, CaseGroup) and not behind:
        behind = interval.n  # derived from another metric of the case, such as limits of agreement
    behind = min(behind, interval.n) if interval.value is not None else behind
    return Measurement(row, behind, whom, open_patients(group, metric, structure))


def _with_denominator(interval: Interval, patients: int) -> Interval:
    """Add a proportion's denominator to its method if it differs from the number of patients."""
    if interval.value is None or interval.n == patients:
        return interval
    successes = int(interval.value * interval.n + 0.5)
    return interval._replace(method=f"{interval.method}; {successes} of {interval.n}")
