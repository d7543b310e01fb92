"""A task's headline metric within groups of patients, and each group's gap to all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import holm_corrected
from medfed.evaluation.disclosure import conflict, is_too_few
from medfed.evaluation.groups import Group, group_of, over_structures
from medfed.evaluation.intervals import Floats, Interval, Resampling, Statistic, mean_of, suppressed_groups
from medfed.evaluation.metrics import (
    CaseGroup,
    ClassGroup,
    ClassificationMetrics,
    FindingsGroup,
    SubgroupStatistic,
    SurvivalGroup,
    SurvivalMetrics,
    families,
    headline_metrics,
)
from medfed.evaluation.patients import Patients, SummarySettings, by_patient, is_open
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
    a group with fewer than `min_patients` patients of an outcome that the metric depends on. An attribute
    from whose groups a value of few patients would follow is suppressed as a whole (`disclosure.conflict`).
    Where two groups are all patients, their gaps are one hypothesis, which Holm's correction counts once.
    """
    some = [case for case in unperturbed(cases) if (case.model, case.split) == (FEDERATED, "test")]
    places = {ALL_SITES: [case for case in some if case.site not in settings.held_out]}
    places |= {site: [case for case in some if case.site == site] for site in sorted(settings.held_out)}
    shown = _shown_wholes(some, settings)
    rows: list[Row] = []
    halves: set[tuple[str, str]] = set()
    for site, members in places.items():
        if not members:
            continue
        place = _place(RowFactory(settings.round, site, "test", FEDERATED), members, settings)
        if place is None:
            continue
        # One hospital alone has no row of all hospitals.
        whole = str(place.sites[0]) if len(set(place.sites)) == 1 else site
        if (place.statistic.metric, place.statistic.structure, whole) not in shown:
            continue
        published = [place.known & (place.sites == name) for name in sorted(set(place.sites))]
        for name in sorted({name for case in members for name in case.attributes}):
            found, groups = _attribute(place, name, published, settings.min_patients)
            rows += found
            published += groups
            if len(groups) == 2 and bool((groups[0] | groups[1]).sum() == place.known.sum()):
                halves.add((site, name))

    def hypothesis(row: Row) -> tuple[str, str]:
        attribute = str(row.group).partition("=")[0]
        return row.site, attribute if (row.site, attribute) in halves else str(row.group)

    return holm_corrected(rows, hypothesis)


def _shown_wholes(cases: Sequence[CaseRow], settings: SummarySettings) -> set[tuple[str, str | None, str]]:
    """Return the metric, structure and site of each value of all patients that is shown.

    Where it is withheld, its groups would give it.
    """
    few_draws = msgspec.structs.replace(settings, draws=1)
    return {
        (row.metric, row.structure, row.site) for row in aggregate(cases, few_draws) if row.value is not None
    }


class _Place(NamedTuple):
    """The patients of one place: each one's hospital, attributes, and whether the metric has a value.

    `open` is whose value the published counts of absences do not give away (`patients.is_open`).
    """

    factory: RowFactory
    statistic: SubgroupStatistic
    resampling: Resampling
    sites: NDArray[np.str_]
    known: NDArray[np.bool_]
    open: NDArray[np.bool_]
    attributes: Sequence[Mapping[str, str]]


def _place(factory: RowFactory, cases: list[CaseRow], settings: SummarySettings) -> _Place | None:
    """Return the patients behind these cases, or None if they have no metric to compare groups by."""
    patients = by_patient(cases)
    group = group_of(patients, settings)
    statistic = _subgroup_statistic(group)
    if statistic is None:
        return None
    known = open_ = np.ones(len(patients.patients), dtype=bool)
    if isinstance(group, CaseGroup):
        values = over_structures(patients)[statistic.structure, statistic.metric]
        known, open_ = np.isfinite(values), is_open(patients, statistic.structure, values)
    member = {(case.site, case.patient): case.attributes for case in cases}
    attributes = [member[key] for key in zip(patients.sites, patients.patients, strict=True)]
    resampling = settings.resampling(patients.sites)
    return _Place(factory, statistic, resampling, np.array(patients.sites), known, open_, attributes)


def _attribute(
    place: _Place, attribute: str, published: Sequence[NDArray[np.bool_]], min_patients: int
) -> tuple[list[Row], list[NDArray[np.bool_]]]:
    """Return the rows of one attribute's groups, and the patients of the groups that are shown."""
    statistic = place.statistic
    groups = np.array([attributes.get(attribute, "not stated") for attributes in place.attributes])
    inside = {str(name): groups == name for name in sorted(set(groups))}
    if len(inside) < 2:
        return [], []
    # A group is as small as the patients whose values its mean tells: those missed are counted elsewhere.
    counts = {
        name: [int((mask & some).sum()) for some in (place.open, place.known)]
        for name, mask in inside.items()
    }
    sizes = {name: known if is_too_few(known, min_patients) else open_ or known
             for name, (open_, known) in counts.items()}  # fmt: skip
    suppressed = suppressed_groups(sizes, min_patients)
    note = f"fewer than {min_patients} patients, or suppressed to protect such a group"
    shown: list[NDArray[np.bool_]] = []
    for name in sorted(set(inside) - suppressed):
        mask = inside[name] & place.known
        if _conflicts(place, mask, [*published, *shown], min_patients):
            suppressed, shown = set(inside), []
            note = f"would give that of fewer than {min_patients} patients beside other groups"
            break
        shown.append(mask)
    rows: list[Row] = []
    for name in inside:
        labelled = place.factory._replace(group=f"{attribute}={name}")
        if name in suppressed:
            rows.append(labelled.suppressed(statistic.metric, note, structure=statistic.structure))
        else:
            rows += _group(labelled, place, inside[name] & place.known, min_patients)
    return rows, shown


def _conflicts(
    place: _Place, mask: NDArray[np.bool_], published: Sequence[NDArray[np.bool_]], min_patients: int
) -> bool:
    """Return whether a group beside those published tells of too few patients, missed ones counted or not."""
    return any(
        conflict(mask & some, [one & some for one in published], some, min_patients)
        for some in (place.known, place.open)
    )


def _group(factory: RowFactory, place: _Place, inside: NDArray[np.bool_], min_patients: int) -> list[Row]:
    """Return one group's metric, and its gap to all others where those are enough patients too."""
    statistic, resampling = place.statistic, place.resampling
    metric, structure, n = statistic.metric, statistic.structure, int(inside.sum())
    if _has_few(statistic, inside, min_patients):
        note = f"fewer than {min_patients} patients with {statistic.outcome}"
        return [factory.suppressed(metric, note, n, structure)]
    interval = resampling.within(inside).interval(statistic.build(inside), n)
    rows = [factory.row(metric, structure, interval, n)]
    # Every other group may be suppressed, and then "the others" would be one small group.
    others = place.known & ~inside
    if int(others.sum()) >= max(min_patients, 1) and not _has_few(statistic, others, min_patients):
        known = resampling.within(place.known)
        gap, p = _gap(statistic.build(place.known), inside[place.known], known)
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

    # By the first patient, not by the group: of two groups each is the other's others, with the same draws.
    strata = [str(member == inside[0]) for member in inside]
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
