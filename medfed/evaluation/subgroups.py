"""A task's headline metric within groups of patients, and each group's gap to all others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medfed.evaluation.comparisons import holm_corrected
from medfed.evaluation.groups import Group, group_of, over_structures
from medfed.evaluation.intervals import Floats, Interval, Resampling, Statistic, mean_of, suppressed_groups
from medfed.evaluation.metrics import (
    ClassGroup,
    ClassificationMetrics,
    FindingsGroup,
    SubgroupStatistic,
    SurvivalGroup,
    SurvivalMetrics,
    families,
    headline_metrics,
)
from medfed.evaluation.patients import Patients, SummarySettings, by_patient
from medfed.evaluation.row_factory import RowFactory
from medfed.evaluation.rows import ALL_SITES, FEDERATED, CaseRow, Row, unperturbed

# What a group is compared with: all patients outside it.
OTHERS = "the others"
# Random assignments of patients to a group, for the p value of its gap.
SHUFFLES = 2_000


def subgroups(cases: Iterable[CaseRow], settings: SummarySettings) -> list[Row]:
    """Return the federated model's metric in each group of test patients, and each group's gap to all others.

    Groups are by attribute, of the study's hospitals together, and of each hospital that took no part. A
    group with fewer than `min_patients` patients is suppressed, and another one with it; so is the metric of
    a group with fewer than `min_patients` patients of an outcome that the metric depends on.
    """
    some = [case for case in unperturbed(cases) if (case.model, case.split) == (FEDERATED, "test")]
    places = {ALL_SITES: [case for case in some if case.site not in settings.held_out]}
    places |= {site: [case for case in some if case.site == site] for site in sorted(settings.held_out)}
    rows = []
    for site, members in places.items():
        factory = RowFactory(settings.round, site, "test", FEDERATED)
        for name in sorted({name for case in members for name in case.attributes}):
            rows += _attribute(members, name, factory, settings)
    return holm_corrected(rows)


def _attribute(
    cases: list[CaseRow], attribute: str, factory: RowFactory, settings: SummarySettings
) -> list[Row]:
    """Return the rows of one attribute's groups."""
    member = {(case.site, case.patient): case.attributes.get(attribute, "not stated") for case in cases}
    sizes = {name: list(member.values()).count(name) for name in sorted(set(member.values()))}
    if len(sizes) < 2:
        return []
    suppressed = suppressed_groups(sizes, settings.min_patients)
    patients = by_patient(cases)
    statistic = _subgroup_statistic(group_of(patients, settings))
    if statistic is None:
        return []
    groups = np.array([member[key] for key in zip(patients.sites, patients.patients, strict=True)])
    rows: list[Row] = []
    for name in sizes:
        labelled = factory._replace(group=f"{attribute}={name}")
        if name in suppressed:
            note = f"fewer than {settings.min_patients} patients, or suppressed to protect such a group"
            rows.append(labelled.suppressed(statistic.metric, note, structure=statistic.structure))
        else:
            resampling = settings.resampling(patients.sites)
            rows += _group(labelled, statistic, groups == name, resampling, settings.min_patients)
    return rows


def _group(
    factory: RowFactory,
    statistic: SubgroupStatistic,
    inside: NDArray[np.bool_],
    resampling: Resampling,
    min_patients: int,
) -> list[Row]:
    """Return one group's metric, and its gap to all others where those are enough patients too."""
    metric, structure, n = statistic.metric, statistic.structure, int(inside.sum())
    if _has_few(statistic, inside, min_patients):
        note = f"fewer than {min_patients} patients with {statistic.outcome}"
        return [factory.suppressed(metric, note, n, structure)]
    interval = resampling.within(inside).interval(statistic.build(inside), n)
    rows = [factory.row(metric, structure, interval, n)]
    # Every other group may be suppressed, and then "the others" would be one small group.
    if len(inside) - n >= min_patients and not _has_few(statistic, ~inside, min_patients):
        gap, p = _gap(statistic.build(np.ones(len(inside), dtype=bool)), inside, resampling)
        rows.append(factory._replace(against=OTHERS).row(metric, structure, gap, n, p))
    return rows


def _has_few(statistic: SubgroupStatistic, inside: NDArray[np.bool_], min_patients: int) -> bool:
    """Return whether an outcome that a metric depends on has fewer than `min_patients` patients inside."""
    return any(int(np.count_nonzero(outcome & inside)) < min_patients for outcome in statistic.outcomes)


def _gap(
    statistic: Statistic, inside: NDArray[np.bool_], resampling: Resampling
) -> tuple[Interval, float | None]:
    """Return the statistic inside minus outside, its interval, and the p value of shuffling who is inside."""

    def gap(counts: Floats) -> Floats:
        return np.asarray(statistic(counts * inside) - statistic(counts * ~inside))

    strata = [str(member) for member in inside]
    interval = resampling._replace(strata=strata).interval(gap, len(inside))
    if interval.value is None:
        return interval, None
    generator = np.random.default_rng(resampling.seed)
    shuffled = generator.permuted(np.tile(inside.astype(np.float64), (SHUFFLES, 1)), axis=1)
    gaps = statistic(shuffled) - statistic(1.0 - shuffled)
    gaps = gaps[np.isfinite(gaps)]
    extreme = int((np.abs(gaps) >= abs(interval.value) - 1e-12).sum())
    method = interval.method.replace("within hospitals", "within groups")
    return interval._replace(method=f"{method}; label permutation"), (extreme + 1) / (len(gaps) + 1)


def _subgroup_statistic(group: Group) -> SubgroupStatistic | None:
    """Return the metric that subgroups are compared by: the first by rank that the patients have."""
    statistics: Iterable[SubgroupStatistic | None]
    if isinstance(group, ClassGroup):
        statistics = (family.subgroup(group) for family in families(ClassificationMetrics))
    elif isinstance(group, FindingsGroup):
        statistics = (family.findings_subgroup(group) for family in families(ClassificationMetrics))
    elif isinstance(group, SurvivalGroup):
        statistics = (family.subgroup(group) for family in families(SurvivalMetrics))
    else:
        statistics = [_case_statistic(group.patients)]
    return next((statistic for statistic in statistics if statistic is not None), None)


def _case_statistic(patients: Patients) -> SubgroupStatistic | None:
    """Return the mean of the first headline metric, over structures where there are several."""
    values = over_structures(patients)
    names = {name for _, name in values}
    metric = next((metric.name for metric in headline_metrics() if metric.name in names), None)
    if metric is None:
        return None
    structures = {structure for structure, name in values if name == metric}
    structure = None if None in structures else min(map(str, structures))
    column = values[structure, metric]
    return SubgroupStatistic(metric, structure, lambda some: mean_of(column[some]))
