"""Rows of guaranteed thresholds: each hospital's, that of pooled patients, the least, and whether they held.

`conformal` holds the mathematics. A patient's score is the largest threshold at which the model succeeds in
all of the patient's images: the largest probability inside a structure (found), its tenth percentile (90 % of
it is covered), the probability of the class that the patient has (sensitivity), of the true class (sets).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medfed.evaluation.classification import proportion
from medfed.evaluation.conformal import Guarantee, RiskCurve, least_of, on_average, with_confidence
from medfed.evaluation.disclosure import is_too_few
from medfed.evaluation.intervals import Interval
from medfed.evaluation.patients import (
    FINDING,
    PROBABILITY,
    SummarySettings,
    by_patient,
    class_names,
    class_predictions,
    finding_predictions,
)
from medfed.evaluation.row_factory import RowFactory
from medfed.evaluation.rows import ALL_SITES, EVERY_SITE, FEDERATED, CaseRow, Row, unperturbed

# The metrics of `scores.jsonl`, from which rows guarantee_found and guarantee_covered are made.
FOUND, COVERED = "found", "covered"
SENSITIVITY, SET = "sensitivity", "set"

PREFIX, HELD = "guarantee_", "held_"
CONFIDENT = "Learn then Test, exact binomial (arXiv:2110.01052)"
EXPECTED = "conformal risk control (arXiv:2208.02814)"

SENT = "the least of the thresholds that the hospitals sent"

# What is guaranteed of which structure or class; None for all of them.
Aim = tuple[str, str | None]
Scores = Mapping[Aim, Sequence[float]]


class Level(NamedTuple):
    """The share of patients in whom the model is to succeed, and the confidence that it does."""

    share: float
    confidence: float = 0.95


def guarantees(
    cases: Iterable[CaseRow], scores: Iterable[CaseRow], settings: SummarySettings, level: Level
) -> list[Row]:
    """Return the federated model's guaranteed thresholds, and how often each held on test patients.

    Args:
        cases: case rows with a classifier's probabilities.
        scores: rows of `scores.jsonl`, of a segmentation.
        settings: as of all rows; hospitals that took no part have no guarantee.
        level: what is to be guaranteed.
    """
    rows = [*unperturbed(cases), *unperturbed(scores)]
    ours = [row for row in rows if row.model == FEDERATED and row.site not in settings.held_out]
    chosen: dict[str, Scores] = {}
    tested: dict[str, Scores] = {}
    for site in sorted({row.site for row in ours}):
        own = [row for row in ours if row.site == site]
        chosen[site] = patient_scores([row for row in own if row.split == "val"], settings)
        tested[site] = patient_scores([row for row in own if row.split == "test"], settings)
    aims = sorted({aim for by_aim in chosen.values() for aim in by_aim}, key=str)
    return [row for aim in aims for row in _of_aim(aim, chosen, tested, settings, level)]


def patient_scores(rows: Sequence[CaseRow], settings: SummarySettings) -> Scores:
    """Return a score of each patient in whom the model can succeed, by what is guaranteed."""
    found: dict[Aim, list[float]] = {}
    masks: dict[tuple[str, str | None], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.metric in (FOUND, COVERED) and row.value is not None:
            by = masks[row.metric, row.structure]
            by[row.patient] = min(row.value, by.get(row.patient, 1.0))
    for aim, by in masks.items():
        found[aim] = list(by.values())
    predictions = [row for row in rows if row.metric in (PROBABILITY, FINDING)]
    if any(row.metric == PROBABILITY for row in predictions):
        p, y = class_predictions(by_patient(predictions), settings.classes)
        names = class_names(settings.classes, p.shape[1])
        found[SET, None] = p[np.arange(len(y)), y].tolist()
        for number in range(1 if len(names) == 2 else 0, len(names)):
            structure = None if len(names) == 2 else names[number]
            found[SENSITIVITY, structure] = p[y == number, number].tolist()
    elif predictions:
        given = finding_predictions(by_patient(predictions), settings.classes)
        for number, name in enumerate(settings.classes):
            present = given.y[:, number] & given.known[:, number]
            found[SENSITIVITY, name] = given.p[present, number].tolist()
    return found


def _of_aim(
    aim: Aim,
    chosen: Mapping[str, Scores],
    tested: Mapping[str, Scores],
    settings: SummarySettings,
    level: Level,
) -> list[Row]:
    """Return the rows of one guarantee: each hospital's, the pooled one, the least, and what test says."""
    curves = {site: RiskCurve.of(scores.get(aim, ())) for site, scores in chosen.items()}
    choose = _rule(aim, level)
    own = {site: choose(curve) for site, curve in curves.items()}
    rows = [_row(site, aim, one, settings) for site, one in own.items()]
    if len(curves) > 1:
        pooled = RiskCurve.of(())
        for curve in curves.values():
            pooled += curve
        rows.append(_row(ALL_SITES, aim, choose(pooled), settings))
        rows.append(_row(EVERY_SITE, aim, least_of(list(own.values())), settings))
    for site, one in own.items():
        scores = tested[site].get(aim, ())
        if one.threshold is not None and len(scores):
            rows.append(_held(site, aim, one.threshold, scores, settings))
    return rows


def least_of_reported(reported: Iterable[Row], sites: Sequence[str]) -> list[Row]:
    """Return the least of the thresholds that hospitals sent, where each hospital of the study sent one.

    A hospital without a guarantee sends none.
    """
    by_aim: dict[Aim, dict[str, Row]] = defaultdict(dict)
    for row in reported:
        if row.metric.startswith(PREFIX) and row.value is not None and row.site in sites:
            by_aim[row.metric.removeprefix(PREFIX), row.structure][row.site] = row
    least = []
    for aim, by_site in sorted(by_aim.items(), key=str):
        own = [
            Guarantee(row.value if row is not None else None, (row.n or 0) if row is not None else 0)
            for row in (by_site.get(site) for site in sites)
        ]
        first = next(iter(by_site.values()))
        factory = RowFactory(first.round, EVERY_SITE, first.split, first.model)
        one = least_of(own)
        metric, interval = f"{PREFIX}{aim[0]}", Interval(one.threshold, None, None, one.patients, SENT)
        if one.threshold is None:
            least.append(factory.suppressed(metric, one.why_not, structure=aim[1]))
        else:
            least.append(factory.row(metric, aim[1], interval, one.patients))
    return least


def _rule(aim: Aim, level: Level) -> Callable[[RiskCurve], Guarantee]:
    if aim[0] == SET:
        return lambda curve: on_average(curve, level.share)
    return lambda curve: with_confidence(curve, level.share, level.confidence)


def _row(site: str, aim: Aim, one: Guarantee, settings: SummarySettings) -> Row:
    """Return a threshold as a row; where there is none, its note says how many patients are needed."""
    factory = RowFactory(settings.round, site, "val", FEDERATED)
    few = is_too_few(one.patients, settings.min_patients)
    number = None if few else one.patients
    if one.threshold is None or few:
        why = one.why_not or "no guarantee"
        why = why.replace(f"{one.patients} val", f"fewer than {settings.min_patients} val") if few else why
        return factory.suppressed(f"{PREFIX}{aim[0]}", why, number, aim[1])
    method = EXPECTED if aim[0] == SET else CONFIDENT
    interval = Interval(one.threshold, None, None, one.patients, method)
    return factory.row(f"{PREFIX}{aim[0]}", aim[1], interval, number)


def _held(site: str, aim: Aim, threshold: float, scores: Sequence[float], settings: SummarySettings) -> Row:
    """Return in which share of test patients the model succeeds at the hospital's own threshold."""
    factory, metric = RowFactory(settings.round, site, "test", FEDERATED), f"{HELD}{aim[0]}"
    if is_too_few(len(scores), settings.min_patients):
        note = f"fewer than {settings.min_patients} patients"
        return factory.suppressed(metric, note, structure=aim[1])
    succeeded = sum(score >= threshold for score in scores)
    interval = proportion(succeeded, len(scores), f"Wilson; threshold {threshold:g}", "no patients")
    return factory.row(metric, aim[1], interval, len(scores))
