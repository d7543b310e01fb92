"""One model against another on the same patients: the difference, its interval and a test.

Values are paired by patient. The interval is a bootstrap of the mean difference (of AUROCs: paired DeLong);
the test flips the sign of each patient's difference, all 2^n ways up to 12 patients and 10,000 random ways
above (of c-indices: the jackknife over patients). The p values that one call returns for one metric at one
hospital are corrected together (Holm), and the method says over how many. The untrained model is shown but
not tested: nobody asks whether training helps.

A row's `value` is model minus `against`, whichever direction is better.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medfed.evaluation import classification, survival
from medfed.evaluation.aggregate import (
    MINIMUM,
    PROBABILITY,
    RISK,
    Patients,
    by_patient,
    metric_of,
    over_structures,
    predictions,
    secret_sites,
    survivals,
)
from medfed.evaluation.intervals import (
    DRAWS,
    Floats,
    Interval,
    Statistic,
    bootstrap,
    hidden,
    holm,
    mean_of,
    wide,
)
from medfed.evaluation.rows import ALL_SITES, FEDERATED, UNTRAINED, CaseRow, Row, as_they_are
from medfed.evaluation.segmentation import ABSENT

# Up to this many patients every sign pattern is tried, so that the p value is exact.
EXACT = 12
FLIPS = 10_000
MANY = 200
SHUFFLES = 2_000
# What is compared, of what is there: the first of each tuple that a run has.
COMPARED = ("dice", "nsd_", "hd95_mm")
OTHERS = "the others"
# What is 0 where a structure was invented, and missing where nothing was there and nothing predicted.
OVERLAPS = ("dice", "nsd_")


def sign_flip(differences: Floats, seed: int) -> float:
    """Return the p value of 'the mean difference is zero', by flipping the patients' signs."""
    n = len(differences)
    observed = abs(float(differences.sum()))
    if n > MANY:
        # Given the sizes of the differences, the flipped sum has mean 0 and this variance, and is normal by
        # now.
        spread = float(np.sqrt((differences**2).sum()))
        return float(2 * stats.norm.sf(observed / spread)) if spread > 0 else 1.0
    if n <= EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        return float((np.abs(signs @ differences) >= observed - 1e-12).mean())
    extreme = int((np.abs(_signs(n, seed) @ differences) >= observed - 1e-12).sum())
    # The observed pattern is one of them: a p value of zero would claim more than was tried.
    return (extreme + 1) / (FLIPS + 1)


@lru_cache(maxsize=2)
def _signs(n: int, seed: int) -> Floats:
    return np.asarray(
        np.random.default_rng(seed).integers(0, 2, (FLIPS, n), dtype=np.int8) * 2.0 - 1.0, dtype=np.float64
    )


def paired(
    first: Floats, second: Floats, strata: Sequence[str], seed: int, draws: int
) -> tuple[Interval, float | None]:
    """Return the mean difference (first minus second) over patients who have both, and its p value."""
    both = np.isfinite(first) & np.isfinite(second)
    differences = (first - second)[both]
    within = [site for site, there in zip(strata, both, strict=True) if there]
    interval = bootstrap(mean_of(differences), len(differences), seed=seed, strata=within, draws=draws)
    if len(differences) < 2:
        return interval, None
    if len(both) > len(differences):
        note = f"{_patients(len(both) - len(differences))} without a pair left out"
        interval = interval._replace(note="; ".join(part for part in (interval.note, note) if part))
    return interval, sign_flip(differences, seed)


def _patients(number: int) -> str:
    return f"{number} patient{'' if number == 1 else 's'}"


def compare(
    cases: Iterable[CaseRow],
    *,
    round: int,
    seed: int,
    model: str = FEDERATED,
    classes: Sequence[str] = (),
    held_out: Sequence[str] = (),
    minimum: int = MINIMUM,
    draws: int = DRAWS,
    split: str = "test",
    correct: bool = True,
) -> list[Row]:
    """Return the differences of one model to every other at every hospital and over the study's hospitals.

    With `correct` false the p values are left as they are, for whoever corrects them with others.
    """
    everything = [case for case in as_they_are(cases) if case.split == split]
    secret = secret_sites(everything, held_out, minimum)
    by_model: dict[str, dict[str, list[CaseRow]]] = {}
    for case in everything:
        by_model.setdefault(case.model, {}).setdefault(case.site, []).append(case)
    rows: list[Row] = []
    for other in sorted(set(by_model) - {model}):
        sites = sorted(by_model[other])
        wanted = [(site, [site]) for site in sites]
        inside = [site for site in sites if site not in held_out]
        if len(inside) > 1:
            wanted.append((ALL_SITES, inside))
        for name, members in wanted:
            if (name, split) in secret:
                continue
            ours, theirs = (
                [case for site in members for case in by_model.get(who, {}).get(site, [])]
                for who in (model, other)
            )
            about = (round, name, split, model, other)
            found = _differences(ours, theirs, about, classes, seed, minimum, draws)
            rows += [msgspec.structs.replace(row, p=None) for row in found] if other == UNTRAINED else found
    return corrected(rows) if correct else rows


def _differences(
    ours: list[CaseRow],
    theirs: list[CaseRow],
    about: tuple[int, str, str, str, str],
    classes: Sequence[str],
    seed: int,
    minimum: int,
    draws: int,
) -> list[Row]:
    shared = {(case.site, case.patient) for case in ours} & {(case.site, case.patient) for case in theirs}
    ours, theirs = ([case for case in some if (case.site, case.patient) in shared] for some in (ours, theirs))
    if len(shared) < max(minimum, 1):
        return []
    first, second = by_patient(ours), by_patient(theirs)
    metrics = {metric for _, metric in first.values}
    if RISK in metrics:
        return _survived(first, second, about, seed, minimum, draws)
    if PROBABILITY in metrics:
        return _classified(first, second, about, classes, seed, minimum, draws)
    rows = []
    first, second, alone = told_apart(first, second)
    others = over_structures(second)
    for (structure, metric), values in over_structures(first).items():
        if metric.startswith(COMPARED) and (structure, metric) in others:
            interval, p = paired(values, others[structure, metric], first.sites, seed, draws)
            number = alone.get((structure, metric), 0)
            if number and interval.value is not None:
                note = f"{_patients(number)} where one model alone saw that nothing is there: 1 against 0"
                interval = interval._replace(note="; ".join(part for part in (interval.note, note) if part))
            rows.append(_row(about, structure, metric, interval, p, "sign-flip permutation"))
    return rows


def told_apart(
    first: Patients, second: Patients
) -> tuple[Patients, Patients, dict[tuple[str | None, str], int]]:
    """Return both models' overlaps with 1 for the one that alone saw that nothing is there, and
    how many such patients.

    Nothing in both reference and prediction has no Dice, and the other model's invention has 0. Leaving
    such a patient out of the pairs would forgive the invention in the one place where two models are
    told apart by it.
    """
    ours, theirs = dict(first.values), dict(second.values)
    where: dict[tuple[str | None, str], NDArray[np.bool_]] = {}
    for key in ours.keys() & theirs.keys():
        if not key[1].startswith(OVERLAPS):
            continue
        a, b = ours[key], theirs[key]
        right_a = np.isnan(a) & np.isfinite(b) & _absent(first, key)
        right_b = np.isnan(b) & np.isfinite(a) & _absent(second, key)
        ours[key], theirs[key] = np.where(right_a, 1.0, a), np.where(right_b, 1.0, b)
        where[key] = right_a | right_b
    for key in list(where):
        # Patients of any structure, for the mean over structures.
        before = where.get((None, key[1]), np.zeros(len(first.patients), dtype=bool))
        if key[0] is not None:
            where[None, key[1]] = before | where[key]
    counts = {key: int(some.sum()) for key, some in where.items()}
    return first._replace(values=ours), second._replace(values=theirs), counts


def _absent(found: Patients, key: tuple[str | None, str]) -> NDArray[np.bool_]:
    return np.array([ABSENT in notes for notes in found.notes[key]], dtype=bool)


def _classified(
    first: Patients,
    second: Patients,
    about: tuple[int, str, str, str, str],
    classes: Sequence[str],
    seed: int,
    minimum: int,
    draws: int,
) -> list[Row]:
    (p, y), (q, _) = predictions(first, classes), predictions(second, classes)
    rows = []
    if p.shape[1] == 2:
        if min((y == 1).sum(), (y == 0).sum()) >= max(minimum, 2):
            interval, p_value = classification.delong_test(p[:, 1], q[:, 1], y == 1)
            rows.append(_row(about, None, "auroc", interval, p_value, "paired DeLong"))
        errors = (p[:, 1] - y) ** 2, (q[:, 1] - y) ** 2
    else:
        one_hot = np.eye(p.shape[1])[y]
        errors = ((p - one_hot) ** 2).sum(axis=1), ((q - one_hot) ** 2).sum(axis=1)
        if min(np.bincount(y, minlength=p.shape[1])) >= max(minimum, 2):
            parts = [
                (classification.auroc_of(p[:, c], y == c), classification.auroc_of(q[:, c], y == c))
                for c in range(p.shape[1])
            ]

            def macro(counts: Floats) -> Floats:
                return np.asarray(np.mean([a(counts) - b(counts) for a, b in parts], axis=0))

            interval = bootstrap(macro, len(y), seed=seed, strata=first.sites, draws=draws)
            rows.append(_row(about, None, "auroc", interval, None, "no test"))
    interval, p_value = paired(*errors, first.sites, seed, draws)
    rows.append(_row(about, None, "brier", interval, p_value, "sign-flip permutation"))
    return rows


def _survived(
    first: Patients,
    second: Patients,
    about: tuple[int, str, str, str, str],
    seed: int,
    minimum: int,
    draws: int,
) -> list[Row]:
    ours, theirs = survivals(first), survivals(second)
    if int(ours.events.sum()) < max(minimum, 1):
        return []
    same: dict[str, Any] = {"strata": first.sites, "seed": seed, "draws": draws}
    interval, p = survival.compared(ours.risks, theirs.risks, ours.times, ours.events, **same)
    rows = [_row(about, None, "c_index", interval, p, "jackknife z" if p is not None else "no test")]
    shared = sorted(ours.curves.keys() & theirs.curves.keys())
    if len(shared) > 1:
        parts = [
            survival.integrated_terms({at: some.curves[at] for at in shared}, some.times, some.events)
            for some in (ours, theirs)
        ]
        if np.isfinite(parts[0]).any():
            interval, p = paired(parts[0], parts[1], **same)
            rows.append(_row(about, None, "integrated_brier", interval, p, "sign-flip permutation"))
    return rows


def _row(
    about: tuple[int, str, str, str, str],
    structure: str | None,
    metric: str,
    interval: Interval,
    p: float | None,
    test: str,
) -> Row:
    round, site, split, model, other = about
    known = metric_of(metric)
    marks = [interval.note, "wide interval" if wide(interval, known.lowest, known.highest) else None]
    note = "; ".join(mark for mark in marks if mark) or None
    if interval.value is None:
        note = note or "no patient has a value of both"
    return Row(
        round=round,
        site=site,
        split=split,
        model=model,
        against=other,
        metric=metric,
        structure=structure,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        p=p,
        method=f"{interval.method}; {test}" if test != interval.method else test,
        note=note,
    )


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the p values of each metric, structure and hospital corrected together.

    A hospital is a question of its own (how do the models compare there?), and one of three patients, whose p
    values cannot be small, must not take the power from one of three hundred.
    """
    families: dict[tuple[str, str | None, str], list[int]] = {}
    for place, row in enumerate(rows):
        if row.p is not None:
            families.setdefault((row.metric, row.structure, row.site), []).append(place)
    found = list(rows)
    for places in families.values():
        p_values = holm([p for place in places if (p := rows[place].p) is not None])
        for place, p in zip(places, p_values, strict=True):
            method = f"{rows[place].method}, Holm over {len(places)} tests"
            found[place] = msgspec.structs.replace(rows[place], p=p, method=method)
    return found


def subgroups(
    cases: Iterable[CaseRow],
    *,
    round: int,
    seed: int,
    model: str = FEDERATED,
    classes: Sequence[str] = (),
    held_out: Sequence[str] = (),
    minimum: int = MINIMUM,
    draws: int = DRAWS,
    split: str = "test",
    attributes: Sequence[str] | None = None,
) -> list[Row]:
    """Return the metric within each group of patients, and each group's gap to everybody else in that
    attribute.

    Groups are of the study's hospitals together, and of each hospital that took no part. A group with fewer
    than `minimum` patients is hidden, and another one with it; so is an AUROC or a c-index of a group with
    fewer than `minimum` patients of an outcome that it tells apart.
    """
    some = [case for case in as_they_are(cases) if case.model == model and case.split == split]
    rows = []
    inside = [case for case in some if case.site not in held_out]
    places = [(ALL_SITES, inside)] + [
        (site, [c for c in some if c.site == site]) for site in sorted(held_out)
    ]
    for site, here in places:
        names = attributes or sorted({name for case in here for name in case.attributes})
        for name in names:
            rows += _groups(here, name, (round, site, split, model), classes, seed, minimum, draws)
    return corrected(rows)


def _groups(
    cases: list[CaseRow],
    attribute: str,
    about: tuple[int, str, str, str],
    classes: Sequence[str],
    seed: int,
    minimum: int,
    draws: int,
) -> list[Row]:
    member = {(case.site, case.patient): case.attributes.get(attribute, "not stated") for case in cases}
    names = sorted(set(member.values()))
    if len(names) < 2:
        return []
    secret = hidden({name: list(member.values()).count(name) for name in names}, minimum)
    found = by_patient(cases)
    groups = np.array([member[key] for key in zip(found.sites, found.patients, strict=True)])
    rows: list[Row] = []
    for structure, metric, build, outcomes in _measures(found, classes):
        for name in names:
            inside = groups == name
            told = _Group(*about, metric, structure, f"{attribute}={name}")
            if name in secret:
                rows.append(told.row(None, None, f"fewer than {minimum} patients, or beside such a group"))
                continue
            if _few(outcomes, inside, minimum):
                told_of = "an event" if metric == "c_index" else "or without the class"
                rows.append(
                    told.row(None, int(inside.sum()), f"fewer than {minimum} patients with {told_of}")
                )
                continue
            sites = [site for site, there in zip(found.sites, inside, strict=True) if there]
            n = int(inside.sum())
            rows.append(told.row(bootstrap(build(inside), n, seed=seed, strata=sites, draws=draws), n))
            # Every other group may be hidden, and then "the others" would be one small group.
            if len(groups) - n >= minimum and not _few(outcomes, ~inside, minimum):
                gap, p = _gap(build(np.ones(len(groups), dtype=bool)), inside, seed, draws)
                rows.append(told.row(gap, n, against=OTHERS, p=p))
    return rows


def _few(outcomes: Sequence[NDArray[np.bool_]], inside: NDArray[np.bool_], minimum: int) -> bool:
    """Tell whether an outcome that a metric is about has fewer than `minimum` patients inside."""
    return any(int(np.count_nonzero(outcome & inside)) < minimum for outcome in outcomes)


class _Group(NamedTuple):
    """What the rows of one group of patients have in common."""

    round: int
    site: str
    split: str
    model: str
    metric: str
    structure: str | None
    group: str

    def row(
        self,
        interval: Interval | None,
        n: int | None,
        note: str | None = None,
        against: str | None = None,
        p: float | None = None,
    ) -> Row:
        found = interval or Interval(None, None, None, 0, "")
        note = note or found.note
        return Row(
            **self._asdict(),
            value=found.value,
            low=found.low,
            high=found.high,
            n=n,
            against=against,
            p=p,
            method=found.method if found.value is not None else None,
            note=note if found.value is not None else note or "undefined here",
        )


def _gap(
    statistic: Statistic, inside: NDArray[np.bool_], seed: int, draws: int
) -> tuple[Interval, float | None]:
    """Return the statistic inside minus outside, its interval, and the p value of shuffling who is inside."""

    def gap(counts: Floats) -> Floats:
        return np.asarray(statistic(counts * inside) - statistic(counts * ~inside))

    interval = bootstrap(gap, len(inside), seed=seed, strata=[str(there) for there in inside], draws=draws)
    if interval.value is None:
        return interval, None
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.tile(inside.astype(np.float64), (SHUFFLES, 1)), axis=1)
    gaps = statistic(shuffled) - statistic(1.0 - shuffled)
    gaps = gaps[np.isfinite(gaps)]
    extreme = int((np.abs(gaps) >= abs(interval.value) - 1e-12).sum())
    method = interval.method.replace("within hospitals", "within groups")
    return interval._replace(method=f"{method}; label permutation"), (extreme + 1) / (len(gaps) + 1)


def _measures(
    found: Patients, classes: Sequence[str]
) -> list[tuple[str | None, str, Callable[[NDArray[np.bool_]], Statistic], tuple[NDArray[np.bool_], ...]]]:
    """Return the headline metric of a task, how to build its statistic on some of the patients, and the
    patients of each outcome that it tells apart."""
    metrics = {metric for _, metric in found.values}
    if RISK in metrics:
        risks, times, events, _ = survivals(found)
        return [
            (
                None,
                "c_index",
                lambda some: survival.c_index_of(risks[some], times[some], events[some]),
                (events,),
            )
        ]
    if PROBABILITY in metrics:
        p, y = predictions(found, classes)
        if p.shape[1] > 2:
            right = (p.argmax(axis=1) == y).astype(np.float64)
            return [(None, "accuracy", lambda some: mean_of(right[some]), ())]
        ill = y == 1
        return [(None, "auroc", lambda some: classification.auroc_of(p[some, 1], ill[some]), (ill, ~ill))]
    values = over_structures(found)
    structures = {structure for structure, metric in values if metric == "dice"}
    structure = None if None in structures else next(iter(sorted(map(str, structures))), None)
    if (structure, "dice") not in values:
        return []
    dice = values[structure, "dice"]
    return [(structure, "dice", lambda some: mean_of(dice[some]), ())]
