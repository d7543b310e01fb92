"""Case rows become rows: patients first, then hospitals, with intervals, and small groups hidden.

A patient's images are averaged before anything else; patients are what `n` counts and what is resampled.
Hospitals of the study are also pooled as the site "all"; a hospital that took no part stays apart.

**Small groups.** A hospital with fewer than `minimum` patients in a split is hidden, and with it the next
smallest, so that its row cannot be had by subtracting the others from "all". Sensitivity, AUROC and what
else splits patients by outcome is hidden where either outcome has fewer than `minimum` patients.

**Absence.** Beside every mean stand the counts of structures missed, invented and absent in both
(`segmentation`). The mean distance is over what was found, and its note says what was left out; the median
counts the rest as infinite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.errors import DataError
from medfed.evaluation import classification, segmentation, survival
from medfed.evaluation._metric import Metric
from medfed.evaluation.histograms import ScoreHistogram, counted
from medfed.evaluation.intervals import (
    DRAWS,
    Floats,
    Interval,
    bootstrap,
    hidden,
    mean_of,
    quantile_of,
    wide,
)
from medfed.evaluation.rows import ALL_SITES, CaseRow, Row, as_they_are

# Fewer patients than this are a small group, unless the study or the hospital says otherwise.
MINIMUM = 5
VALIDATION = "val"

METRICS: dict[str, Metric] = {**segmentation.METRICS, **classification.METRICS, **survival.METRICS}

PROBABILITY = "probability"
RISK = "risk"
# What is not averaged over structures, because a sum of counts or volumes of different organs says nothing.
OVER_STRUCTURES = ("dice", "nsd_", "hd95_mm", "msd_mm")
DISTANCES = ("hd95_mm", "msd_mm")


def metric_of(name: str) -> Metric:
    """Return a metric's label, unit and direction, also for a surface Dice that carries its tolerance."""
    if name.startswith("nsd_"):
        _, form, tolerance = name.split("_")
        label = f"Surface Dice at {tolerance.removesuffix('mm')} mm"
        return Metric(label, says=f"share of both surfaces within the tolerance, {form} form")
    if name.startswith("brier@"):
        return Metric(
            f"Brier score at {name.removeprefix('brier@')}", better="lower", says="censoring-weighted"
        )
    return METRICS.get(name, Metric(name.replace("_", " "), better="none", lowest=None, highest=None))


class Patients(NamedTuple):
    """One model's patients of one split: names, hospitals, and by (structure, metric) a value each."""

    patients: list[str]
    sites: list[str]
    values: dict[tuple[str | None, str], Floats]
    notes: dict[tuple[str | None, str], list[list[str]]]
    targets: dict[tuple[str | None, str], Floats]
    events: dict[tuple[str | None, str], NDArray[np.bool_]]


def by_patient(cases: Sequence[CaseRow]) -> Patients:
    """Return one value a patient, the mean over the patient's images; NaN where none of them has one.

    Raises:
        DataError: the images of one patient have different targets, or some were changed before they were measured.
    """
    conditions = sorted({case.condition or "none" for case in cases})
    if len(conditions) > 1:
        raise DataError(
            f"case rows of model '{cases[0].model}' at site '{cases[0].site}': patients can't be summarised over the "
            f"conditions {', '.join(conditions)}; give the cases of one"
        )
    names = sorted({(case.site, case.patient) for case in cases})
    place = {name: index for index, name in enumerate(names)}
    collected: dict[tuple[str | None, str], list[list[CaseRow]]] = {}
    for case in cases:
        key = (case.structure, case.metric)
        # Not setdefault: it would make a list a patient for every case row.
        if key not in collected:
            collected[key] = [[] for _ in names]
        collected[key][place[case.site, case.patient]].append(case)
    values, notes, targets, events = {}, {}, {}, {}
    for key, lists in collected.items():
        values[key] = np.array([_mean([case.value for case in cases]) for cases in lists])
        notes[key] = [[case.note for case in cases if case.note] for cases in lists]
        targets[key] = np.array([_single(cases) for cases in lists])
        events[key] = np.array([any(case.event or False for case in cases) for cases in lists])
    return Patients(
        [patient for _, patient in names], [site for site, _ in names], values, notes, targets, events
    )


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else np.nan


def _single(cases: list[CaseRow]) -> float:
    found = {case.target for case in cases if case.target is not None}
    if len(found) > 1:
        raise DataError(
            f"patient {cases[0].patient} at site {cases[0].site}: images with different targets; a patient "
            "is summarised once: give the images one target, or each its own patient id"
        )
    return found.pop() if found else np.nan


def aggregate(
    cases: Iterable[CaseRow],
    *,
    round: int,
    seed: int,
    classes: Sequence[str] = (),
    held_out: Sequence[str] = (),
    minimum: int = MINIMUM,
    draws: int = DRAWS,
) -> list[Row]:
    """Return the rows of every model at every hospital and over the study's hospitals, per split.

    Args:
        cases: of one round; of all hospitals (a simulation) or of the hospital that runs this. Those that were changed
            before they were measured are left out.
        round: that the models are of.
        seed: of the bootstrap.
        classes: a classifier's, in the order of their numbers; of two, the second is looked for.
        held_out: hospitals that took no part; they are not pooled.
        minimum: patients a group needs to be shown.
        draws: of the bootstrap.
    """
    everything = as_they_are(cases)
    thresholds = _operating_points(everything, classes)
    secret = secret_sites(everything, held_out, minimum)
    rows = []
    for (model, split), some in _grouped(everything).items():
        for site, patients in _sites(some, held_out):
            told = _Told(round, site, split, model)
            if (site, split) in secret:
                rows.append(
                    told.row("patients", None, note=f"fewer than {minimum} patients, or beside such a site")
                )
                continue
            found = by_patient(patients)
            rows.append(told.row("patients", float(len(found.patients)), n=len(found.patients)))
            rows += _summaries(told, found, classes, thresholds.get(model), seed, minimum, draws)
    return rows


def secret_sites(cases: Iterable[CaseRow], held_out: Sequence[str], minimum: int) -> set[tuple[str, str]]:
    """Return the (site, split) pairs that may not be shown: small ones, and those that would give them
    away."""
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases:
        patients[case.site, case.split].add(case.patient)
    found = set()
    for split in {split for _, split in patients}:
        sizes = {site: len(names) for (site, its), names in patients.items() if its == split}
        apart = {site for site in sizes if site in held_out}
        pooled = {site: size for site, size in sizes.items() if site not in apart}
        found |= {(site, split) for site in apart if sizes[site] < minimum}
        found |= {(site, split) for site in hidden(pooled, minimum)}
        if sum(pooled.values()) < minimum:
            found.add((ALL_SITES, split))
    return found


def _grouped(cases: Iterable[CaseRow]) -> dict[tuple[str, str], list[CaseRow]]:
    groups: dict[tuple[str, str], list[CaseRow]] = defaultdict(list)
    for case in cases:
        groups[case.model, case.split].append(case)
    return dict(sorted(groups.items()))


def _sites(cases: list[CaseRow], held_out: Sequence[str]) -> list[tuple[str, list[CaseRow]]]:
    names = sorted({case.site for case in cases})
    found = [(name, [case for case in cases if case.site == name]) for name in names]
    pooled = [case for case in cases if case.site not in held_out]
    if len({case.site for case in pooled}) > 1:
        found.append((ALL_SITES, pooled))
    return found


class _Told(NamedTuple):
    """What the rows of one group have in common."""

    round: int
    site: str
    split: str
    model: str

    def row(
        self,
        metric: str,
        value: float | None,
        *,
        n: int | None = None,
        structure: str | None = None,
        note: str | None = None,
    ) -> Row:
        return Row(
            round=self.round,
            site=self.site,
            split=self.split,
            model=self.model,
            metric=metric,
            value=value,
            n=n,
            structure=structure,
            note=note,
        )

    def interval(self, structure: str | None, metric: str, found: Interval, extra: Sequence[str] = ()) -> Row:
        return Row(
            round=self.round,
            site=self.site,
            split=self.split,
            model=self.model,
            metric=metric,
            structure=structure,
            value=found.value,
            low=found.low,
            high=found.high,
            n=found.n,
            method=found.method if found.value is not None else None,
            note=_note(metric, found, extra),
        )


def _note(metric: str, found: Interval, extra: Sequence[str]) -> str | None:
    about = metric_of(metric)
    parts = [found.note, *extra, "wide interval" if wide(found, about.lowest, about.highest) else None]
    return "; ".join(part for part in parts if part) or None


def _summaries(
    told: _Told,
    found: Patients,
    classes: Sequence[str],
    thresholds: tuple[list[float], str] | None,
    seed: int,
    minimum: int,
    draws: int,
) -> list[Row]:
    metrics = {metric for _, metric in found.values}
    if PROBABILITY in metrics:
        return _classified(told, found, classes, thresholds, seed, minimum, draws)
    if RISK in metrics:
        return _survived(told, found, seed, minimum, draws)
    return _averaged(told, found, seed, draws)


def _averaged(told: _Told, found: Patients, seed: int, draws: int) -> list[Row]:
    rows = []
    structures = sorted({structure for structure, _ in found.values if structure is not None})
    for (structure, metric), values in over_structures(found).items():
        notes = found.notes.get((structure, metric), [[] for _ in values])
        known = np.isfinite(values)
        extra = _absences(metric, notes)
        if not known.any():
            reason = (
                extra[0] if extra else next((n for some in notes for n in some), "no patient has a value")
            )
            rows.append(told.row(metric, None, n=0, structure=structure, note=reason))
            continue
        strata = [site for site, there in zip(found.sites, known, strict=True) if there]
        interval = bootstrap(mean_of(values[known]), int(known.sum()), seed=seed, strata=strata, draws=draws)
        rows.append(told.interval(structure, metric, interval, extra))
        if metric == "hd95_mm" and structure is not None:
            rows.append(_median(told, structure, found, seed, draws))
        if metric == "volume_difference_ml":
            rows += _limits(told, structure, values[known])
    for structure in structures:
        noted = found.notes.get((structure, "dice"), [])
        for metric, note in (
            ("missed", segmentation.MISSED),
            ("invented", segmentation.FALSE_POSITIVE),
            ("absent", segmentation.ABSENT),
        ):
            # Patients in any of whose images it happened, as n counts patients.
            number = float(sum(note in some for some in noted))
            rows.append(told.row(metric, number, n=len(found.patients), structure=structure))
    return rows


def over_structures(found: Patients) -> dict[tuple[str | None, str], Floats]:
    """Return the values by structure, and for more than one structure also their mean within each patient."""
    values = dict(found.values)
    structures = sorted({structure for structure, _ in values if structure is not None})
    if len(structures) > 1:
        for metric in sorted({metric for _, metric in values}):
            if metric.startswith(OVER_STRUCTURES):
                table = np.stack([values[s, metric] for s in structures if (s, metric) in values])
                known = np.isfinite(table)
                total = np.where(known, table, 0.0).sum(axis=0)
                values[None, metric] = np.divide(
                    total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0)
                )
    return dict(sorted(values.items(), key=lambda item: (item[0][1], item[0][0] or "")))


def _absences(metric: str, notes: list[list[str]]) -> list[str]:
    every = [note for some in notes for note in some]
    missed, invented = every.count(segmentation.MISSED), every.count(segmentation.FALSE_POSITIVE)
    absent = every.count(segmentation.ABSENT)
    parts = []
    if missed or invented:
        how = "left out" if metric in DISTANCES else "counted as 0"
        parts.append(f"{missed} missed and {invented} invented {how}")
    if absent:
        parts.append(f"{absent} absent in both left out")
    return parts


def _median(told: _Told, structure: str, found: Patients, seed: int, draws: int) -> Row:
    values = found.values[structure, "hd95_mm"].copy()
    notes = found.notes[structure, "hd95_mm"]
    for place, some in enumerate(notes):
        if segmentation.MISSED in some or segmentation.FALSE_POSITIVE in some:
            values[place] = np.inf
    there = ~np.isnan(values)
    strata = [site for site, known in zip(found.sites, there, strict=True) if known]
    patients = int(there.sum())
    infinite = int(np.isinf(values).sum())
    statistic = quantile_of(values[there], 0.5)
    if not np.isfinite(statistic(np.ones((1, patients)))[0]):
        note = f"{infinite} of {patients} missed or invented: the median is infinite"
        return told.row("hd95_median_mm", None, n=patients, structure=structure, note=note)
    # BCa's jackknife says little about a median; the percentile interval is the usual choice.
    interval = bootstrap(statistic, patients, seed=seed, strata=strata, kind="percentile", draws=draws)
    extra = [f"{infinite} missed or invented counted as infinite"] if infinite else []
    return told.interval(structure, "hd95_median_mm", interval, extra)


def _limits(told: _Told, structure: str | None, differences: Floats) -> list[Row]:
    n = len(differences)
    if n < 3:
        return []
    # Bland and Altman, Lancet 1986: the standard error of a limit is about sqrt(3 / n) standard deviations.
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    half = 1.96 * deviation * np.sqrt(3 / n)
    rows = []
    for metric, limit in (
        ("volume_limit_low_ml", mean - 1.96 * deviation),
        ("volume_limit_high_ml", mean + 1.96 * deviation),
    ):
        interval = Interval(limit, limit - half, limit + half, n, "Bland and Altman, mean and 1.96 SD")
        rows.append(told.interval(structure, metric, interval))
    return rows


def predictions(found: Patients, classes: Sequence[str]) -> tuple[Floats, NDArray[np.intp]]:
    """Return (patients, classes) probabilities and class numbers, from one row a class or only the second's.

    Raises:
        DataError: a patient lacks a probability or a target.
    """
    names = [structure for structure, metric in found.values if metric == PROBABILITY]
    columns = [found.values[name, PROBABILITY] for name in names]
    targets = [found.targets[name, PROBABILITY] for name in names]
    if any(not np.isfinite(column).all() for column in [*columns, *targets]):
        raise DataError(
            "a patient lacks a probability or a target; predict every case, or leave it out in all models"
        )
    if len(names) == 1:
        return np.stack([1 - columns[0], columns[0]], axis=1), targets[0].astype(np.intp)
    by_name = {name: place for place, name in enumerate(names)}
    wanted = [name for name in classes if name in by_name]
    if len(wanted) != len(names):
        raise DataError(f"rows name the classes {sorted(map(str, names))}, the study {sorted(classes)}")
    order = [by_name[name] for name in wanted]
    p = np.stack([columns[place] for place in order], axis=1)
    return p, np.stack([targets[place] for place in order], axis=1).argmax(axis=1)


def _names(classes: Sequence[str], columns: int) -> list[str]:
    return list(classes) if len(classes) == columns else [str(place) for place in range(columns)]


def _classified(
    told: _Told,
    found: Patients,
    classes: Sequence[str],
    thresholds: tuple[list[float], str] | None,
    seed: int,
    minimum: int,
    draws: int,
) -> list[Row]:
    p, y = predictions(found, classes)
    names = _names(classes, p.shape[1])
    points, fixed = thresholds or ([0.5] * len(names), "not fixed on validation patients")
    measured = classification.measure(
        p, y, names, seed=seed, thresholds=points, fixed=fixed, strata=found.sites, draws=draws
    )
    counts = {name: int((y == place).sum()) for place, name in enumerate(names)}
    counts[""] = counts[names[1]] if len(names) == 2 else min(counts.values())
    rows = []
    for structure, metric, interval in measured:
        there = counts[structure or ""]
        other = len(y) - there if len(names) == 2 or structure else len(y)
        if min(there, other) < minimum and metric not in ("brier", "accuracy"):
            note = f"fewer than {minimum} patients with or without the class"
            rows.append(told.row(metric, None, n=len(y), structure=structure, note=note))
        else:
            # Its own denominator is in the method; n counts the patients of the group.
            method = interval.method
            if interval.n != len(y) and interval.value is not None:
                method = f"{method}; {round_half(interval.value * interval.n)} of {interval.n}"
            rows.append(told.interval(structure, metric, interval._replace(n=len(y), method=method)))
    return rows


def round_half(value: float) -> int:
    """Return the nearest whole number."""
    return int(np.floor(value + 0.5))


def _operating_points(cases: Sequence[CaseRow], classes: Sequence[str]) -> dict[str, tuple[list[float], str]]:
    """Return each model's thresholds, fixed on all validation patients that it was run on."""
    found = {}
    chosen = [case for case in cases if case.split == VALIDATION and case.metric == PROBABILITY]
    for (model, _), some in _grouped(chosen).items():
        p, y = predictions(by_patient(some), classes)
        points = [classification.operating_point(p[:, place], y == place) for place in range(p.shape[1])]
        if all(point is not None for point in points):
            fixed = f"Youden index on {len(y)} validation patients"
            found[model] = ([float(point) for point in points if point is not None], fixed)
    return found


class Survivals(NamedTuple):
    """What is known and predicted of each patient's survival; a curve is the chance of living beyond a time."""

    risks: Floats
    times: Floats
    events: NDArray[np.bool_]
    curves: dict[float, Floats]


def survivals(found: Patients) -> Survivals:
    """Return one model's predictions of survival, a value a patient.

    Raises:
        DataError: a patient lacks a risk or a time.
    """
    key = next(key for key in found.values if key[1] == RISK)
    risks, times, events = found.values[key], found.targets[key], found.events[key]
    if not (np.isfinite(risks) & np.isfinite(times)).all():
        raise DataError("a patient lacks a risk or a time; predict every case, or leave it out in all models")
    curves = {
        float(metric.removeprefix("survival@")): values
        for (_, metric), values in found.values.items()
        if metric.startswith("survival@")
    }
    return Survivals(risks, times, events, curves)


def _survived(told: _Told, found: Patients, seed: int, minimum: int, draws: int) -> list[Row]:
    risks, times, events, curves = survivals(found)
    alive = len(events) - int(events.sum())
    if int(events.sum()) < minimum:
        note = f"fewer than {minimum} events"
        return [told.row("c_index", None, n=len(risks), note=note)]
    measured = survival.measure(
        risks, times, events, curves=curves, seed=seed, strata=found.sites, draws=draws
    )
    rows = [told.interval(None, metric, interval) for metric, interval in measured.items()]
    if 0 < alive < minimum:
        return [*rows, told.row("events", None, n=len(events), note=f"fewer than {minimum} without an event")]
    return [*rows, told.row("events", float(events.sum()), n=len(events))]


def cooled(cases: Sequence[CaseRow], classes: Sequence[str]) -> tuple[list[CaseRow], dict[str, float]]:
    """Return the cases with each model's probabilities at the temperature fitted on its validation patients.

    Guo et al., ICML 2017. The order of patients, and so AUROC, stays; a model without validation patients
    stays as it is. The second value holds each model's temperature.
    """
    temperatures = {}
    for (model, split), some in _grouped(c for c in cases if c.metric == PROBABILITY).items():
        if split == VALIDATION:
            p, y = predictions(by_patient(some), classes)
            temperatures[model] = classification.temperature(p, y)
    by_case: dict[tuple[str, ...], list[CaseRow]] = defaultdict(list)
    rest = []
    for case in cases:
        if case.metric == PROBABILITY and case.model in temperatures and case.value is not None:
            by_case[case.model, case.site, case.split, case.case, case.condition or ""].append(case)
        else:
            rest.append(case)
    found = []
    for (model, *_), some in by_case.items():
        p = np.array([case.value for case in some])
        single = len(some) == 1
        rescaled = classification.rescaled(p if single else p[None], temperatures[model])
        values = rescaled if single else rescaled[0]
        found += [msgspec.structs.replace(case, value=float(v)) for case, v in zip(some, values, strict=True)]
    return [*rest, *found], temperatures


def histograms(
    cases: Iterable[CaseRow],
    *,
    round: int,
    classes: Sequence[str] = (),
    minimum: int = MINIMUM,
    split: str = "test",
) -> list[ScoreHistogram]:
    """Return each model's and hospital's counts of patients by predicted risk, coarse enough to leave the
    hospital."""
    some = [case for case in as_they_are(cases) if case.metric == PROBABILITY and case.split == split]
    found = []
    for (model, _), group in _grouped(some).items():
        for site in sorted({case.site for case in group}):
            p, y = predictions(by_patient([case for case in group if case.site == site]), classes)
            names = _names(classes, p.shape[1])
            asked = [(1, None)] if p.shape[1] == 2 else [(place, name) for place, name in enumerate(names)]
            if len(y) < minimum:
                continue
            for place, name in asked:
                found.append(
                    counted(
                        p[:, place],
                        y == place,
                        round=round,
                        site=site,
                        split=split,
                        model=model,
                        structure=name,
                        minimum=minimum,
                    )
                )
    return found
