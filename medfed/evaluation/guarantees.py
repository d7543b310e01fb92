"""Rows of guaranteed thresholds: each hospital's, that of pooled patients, the least, and whether they held.

`conformal` holds the mathematics. A patient's score is the largest threshold at which the model succeeds in
all of the patient's images: the largest probability inside a structure (found), its tenth percentile (90 % of
it is covered), the probability of the class that the patient has (sensitivity), of the true class (sets). For
voxel-wise risk (voxels) a patient has a loss at each threshold: the share of a structure's voxels missed.

What leaves is a hospital's risk curve, a row per threshold ("risk_found@0.3"), under the smallest group
(`RiskCurve.protected`). All rows here follow from these curves, so that a hub makes the same ones of curves
that it was sent. A hospital's own threshold is finer: `own_guarantee` chooses it where the patients are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.evaluation.classification import proportion
from medfed.evaluation.conformal import (
    GRID,
    Guarantee,
    RiskCurve,
    failures_of,
    least_of,
    on_average,
    with_confidence,
)
from medfed.evaluation.disclosure import is_too_few
from medfed.evaluation.intervals import Interval, Resampling, mean_of
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
# The metrics of `scores.jsonl`, from which the rows of segmentations are made; `MISSED_AT` is followed by a
# threshold, and stands only where the share differs from that at the threshold before.
FOUND, COVERED, VOXELS = "found", "covered", "voxels"
MISSED_AT = "missed@"
SENSITIVITY, SET = "sensitivity", "set"

PREFIX, HELD, RISK = "guarantee_", "held_", "risk_"
CONFIDENT = "Learn then Test, exact binomial (arXiv:2110.01052)"
EXPECTED = "conformal risk control (arXiv:2208.02814)"
UPPER = "upper bound, under the smallest group"
UNUSABLE = "no guarantee: the curve that this hospital sent contradicts itself"

# What is guaranteed of which structure or class; None for all of them.
Aim = tuple[str, str | None]
Scores = Mapping[Aim, Sequence[float]]
# A loss of each patient at each threshold, (patients, thresholds of GRID).
Losses = NDArray[np.float64]


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
    ours = _federated(cases, scores, settings)
    curves, held = {}, []
    for site in sorted({row.site for row in ours}):
        own = [row for row in ours if row.site == site]
        curves[site] = curves_of([row for row in own if row.split == "val"], settings)
    aims = sorted({aim for by_aim in curves.values() for aim in by_aim}, key=str)
    rows = [row for site, by_aim in curves.items() for aim in by_aim
            for row in _risk_rows(site, aim, by_aim[aim], settings)]  # fmt: skip
    for aim in aims:
        its = {site: by_aim.get(aim, RiskCurve.of(())) for site, by_aim in curves.items()}
        rows += of_curves(aim, its, settings, level)
    thresholds = {(row.site, row.metric, row.structure): row.value for row in rows}
    for site in curves:
        tested = patient_losses([r for r in ours if r.site == site and r.split == "test"], settings)
        for aim in aims:
            threshold = thresholds.get((site, f"{PREFIX}{aim[0]}", aim[1]))
            if threshold is not None and len(tested.get(aim, ())):
                held.append(_held(site, aim, threshold, tested[aim], settings))
    return rows + held


def _federated(
    cases: Iterable[CaseRow], scores: Iterable[CaseRow], settings: SummarySettings
) -> list[CaseRow]:
    rows = [*unperturbed(cases), *unperturbed(scores)]
    return [row for row in rows if row.model == FEDERATED and row.site not in settings.held_out]


def own_guarantee(
    cases: Iterable[CaseRow],
    scores: Iterable[CaseRow],
    settings: SummarySettings,
    level: Level,
    aim: Aim,
) -> Guarantee:
    """Return one hospital's own threshold, in hundredths, from its own validation patients' rows.

    It is nearly a single patient's score: use it at the hospital, and send it nowhere.
    """
    ours = [row for row in _federated(cases, scores, settings) if row.split == "val"]
    losses = patient_losses(ours, settings).get(aim)
    curve = RiskCurve.of(()) if losses is None else RiskCurve.of_losses(losses)
    return _rule(aim, level)(curve)


def curves_of(rows: Sequence[CaseRow], settings: SummarySettings) -> dict[Aim, RiskCurve]:
    """Return the curves that may leave, of one hospital's validation patients, by what is guaranteed."""
    found = {}
    for aim, losses in patient_losses(rows, settings).items():
        exact = RiskCurve.of_losses(losses)
        found[aim] = exact.rounded_up() if aim[0] == VOXELS else exact.protected(settings.min_patients)
    return found


def patient_losses(rows: Sequence[CaseRow], settings: SummarySettings) -> dict[Aim, Losses]:
    """Return the losses (patients, thresholds) of the patients who can be failed, by what is guaranteed."""
    losses = {aim: failures_of(scores) for aim, scores in patient_scores(rows, settings).items()}
    return {**losses, **_missed_voxels(rows)}


def _missed_voxels(rows: Sequence[CaseRow]) -> dict[Aim, Losses]:
    """Return the shares of voxels missed, by structure; of several images of a patient the mean."""
    steps: dict[str, dict[tuple[str, str], dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.metric.startswith(MISSED_AT) and row.value is not None and row.structure is not None:
            at = float(row.metric.removeprefix(MISSED_AT))
            steps[row.structure][row.patient, row.case][at] = row.value
    found: dict[Aim, Losses] = {}
    for structure, images in steps.items():
        by: dict[str, list[Losses]] = defaultdict(list)
        for (patient, _), changes in images.items():
            # Shares never fall as the threshold rises, so the largest so far is that of the last change.
            by[patient].append(np.array(list(accumulate((changes.get(at, 0.0) for at in GRID), max))))
        found[VOXELS, structure] = np.stack([np.mean(some, axis=0) for some in by.values()])
    return found


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


def of_curves(
    aim: Aim, curves: Mapping[str, RiskCurve | None], settings: SummarySettings, level: Level
) -> list[Row]:
    """Return the rows of one guarantee: each hospital's threshold, the pooled one, and the least.

    Args:
        aim: what is guaranteed.
        curves: the hospitals' curves as they may leave; None for one that contradicts itself. Hospitals with
            too few patients to send a curve are in no pooled threshold.
        settings: as of all rows.
        level: what is to be guaranteed.
    """
    choose = _rule(aim, level)
    own = {
        site: Guarantee(None, 0, why_not=UNUSABLE) if curve is None else choose(curve)
        for site, curve in curves.items()
    }
    shown = [
        curve for curve in curves.values()
        if curve is not None and not is_too_few(curve.patients, settings.min_patients)
    ]  # fmt: skip
    rows = [_row(site, aim, one, settings) for site, one in own.items()]
    if len(curves) > 1:
        pooled = sum(shown, RiskCurve.of(()))
        kept = [Guarantee(row.value, row.n or 0) for row in rows]
        none = Guarantee(None, 0, why_not="no guarantee: no hospital has enough validation patients")
        rows.append(_row(ALL_SITES, aim, choose(pooled) if shown else none, settings))
        rows.append(_row(EVERY_SITE, aim, least_of(kept), settings))
    return rows


def reported_guarantees(
    reported: Iterable[Row], sites: Sequence[str], settings: SummarySettings, level: Level
) -> list[Row]:
    """Return the thresholds that follow from the curves that hospitals sent, as `guarantees` does.

    A hospital of the study that sent none has no guarantee, and so there is none that holds at each.
    """
    by_aim: dict[Aim, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in reported:
        about = (row.split, row.model, row.group, row.against)
        if row.metric.startswith(RISK) and row.site in sites and about == ("val", FEDERATED, None, None):
            kind = row.metric.removeprefix(RISK).partition("@")[0]
            by_aim[kind, row.structure][row.site].append(row)
    rows: list[Row] = []
    for aim, by_site in sorted(by_aim.items(), key=str):
        none = RiskCurve.of(())
        curves = {site: _curve_of(by_site[site]) if site in by_site else none for site in sites}
        rows += of_curves(aim, curves, settings, level)
    return rows


def _risk_rows(site: str, aim: Aim, curve: RiskCurve, settings: SummarySettings) -> list[Row]:
    """Return a curve as rows, one per threshold; none of a hospital with too few patients."""
    if not curve.patients or is_too_few(curve.patients, settings.min_patients):
        return []
    factory, n = RowFactory(settings.round, site, "val", FEDERATED), curve.patients
    return [
        factory.row(f"{RISK}{aim[0]}@{cut:g}", aim[1], Interval(loss / n, None, None, n, UPPER), n)
        for cut, loss in curve.at_cuts.items()
    ]


def _curve_of(rows: Sequence[Row]) -> RiskCurve | None:
    """Return the curve that one hospital's rows describe, or None if they contradict each other."""
    patients = {row.n or 0 for row in rows}
    if len(patients) != 1:
        return None
    (n,) = patients
    # Sums of failures are whole: what is left is the rounding of a share. Those of shares are hundredths.
    return RiskCurve.of_cuts(
        n, {float(row.metric.partition("@")[2]): round((row.value or 0.0) * n, 6) for row in rows}
    )


def _rule(aim: Aim, level: Level) -> Callable[[RiskCurve], Guarantee]:
    if aim[0] in (SET, VOXELS):
        return lambda curve: on_average(curve, level.share)
    return lambda curve: with_confidence(curve, level.share, level.confidence)


def _row(site: str, aim: Aim, one: Guarantee, settings: SummarySettings) -> Row:
    """Return a threshold as a row; where there is none, its note says how many patients are needed."""
    factory = RowFactory(settings.round, site, "val", FEDERATED)
    few = is_too_few(one.patients, settings.min_patients)
    number = None if few else one.patients
    if one.threshold is None or few:
        why = one.why_not or "no guarantee"
        if few:
            # How many of so few fail is theirs alone; how many are needed is not.
            needed = why.partition("validation patients, ")[2] if "are needed" in why else "which is too few"
            why = f"no guarantee: fewer than {settings.min_patients} validation patients, {needed}"
        return factory.suppressed(f"{PREFIX}{aim[0]}", why, number, aim[1])
    method = EXPECTED if aim[0] in (SET, VOXELS) else CONFIDENT
    interval = Interval(one.threshold, None, None, one.patients, method)
    return factory.row(f"{PREFIX}{aim[0]}", aim[1], interval, number)


def _held(site: str, aim: Aim, threshold: float, losses: Losses, settings: SummarySettings) -> Row:
    """Return how well the model does in test patients at the hospital's threshold of these rows."""
    factory, metric = RowFactory(settings.round, site, "test", FEDERATED), f"{HELD}{aim[0]}"
    if is_too_few(len(losses), settings.min_patients):
        note = f"fewer than {settings.min_patients} patients"
        return factory.suppressed(metric, note, structure=aim[1])
    succeeded = 1.0 - losses[:, GRID.index(threshold)]
    if aim[0] == VOXELS:
        resampling = Resampling(settings.seed, None, settings.draws)
        interval = resampling.interval(mean_of(succeeded), len(succeeded))
    else:
        method = f"Wilson; threshold {threshold:g}"
        interval = proportion(int(succeeded.sum()), len(succeeded), method, "no patients")
    return factory.row(metric, aim[1], interval, len(losses))
