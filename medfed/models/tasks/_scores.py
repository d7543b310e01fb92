"""Validation scores in float64: Dice with counts of empty cases, area under the ROC curve, concordance.

Training monitors these scores. The metrics of reports, with distances and
intervals, are in medfed.evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class DiceScores:
    """Dice of each foreground class, and how many cases were empty on one side or both.

    `mean` is the mean over the classes that have a Dice, each the mean over its cases. For a case
    and a class with
    - reference and prediction empty, Dice is undefined: counted in `both_empty` and in no mean;
    - only the reference empty, Dice is 0: counted in `false_positives`;
    - only the prediction empty, Dice is 0: counted in `missed`.
    """

    mean: float | None
    by_class: tuple[float | None, ...]
    both_empty: int
    false_positives: int
    missed: int


def dice_scores(counts: np.ndarray) -> DiceScores:
    """Return the scores of counts (cases, classes, 3): voxels in both, in prediction, in reference."""
    counts = np.asarray(counts, dtype=np.float64)
    both, predicted, reference = counts[..., 0], counts[..., 1], counts[..., 2]
    total = predicted + reference
    defined = total > 0
    dice = np.divide(2 * both, total, out=np.zeros_like(total), where=defined)
    by_class = tuple(
        float(dice[defined[:, index], index].mean()) if defined[:, index].any() else None
        for index in range(counts.shape[1])
    )
    defined_values = [value for value in by_class if value is not None]
    return DiceScores(
        mean=float(np.mean(defined_values)) if defined_values else None,
        by_class=by_class,
        both_empty=int((~defined).sum()),
        false_positives=int(((reference == 0) & (predicted > 0)).sum()),
        missed=int(((reference > 0) & (predicted == 0)).sum()),
    )


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the area under the ROC curve, with ties as a half, or None if all examples are of one class.

    It is Mann and Whitney's U divided by the number of pairs.
    """
    positive = np.asarray(positive, dtype=bool)
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return None
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    u = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives))


def mean_auroc(probabilities: np.ndarray, target: np.ndarray) -> float | None:
    """Return the AUROC of the second class of two, or the mean of each class against the rest.

    None if a class has no example: a mean over fewer classes would not be comparable between hospitals.
    """
    if probabilities.shape[1] == 2:
        return auroc(probabilities[:, 1], target == 1)
    values = [auroc(probabilities[:, k], target == k) for k in range(probabilities.shape[1])]
    defined_values = [value for value in values if value is not None]
    return float(np.mean(defined_values)) if values and len(defined_values) == len(values) else None


def c_index(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float | None:
    """Return Harrell's concordance: the share of comparable pairs in which the higher risk
    has the earlier event.

    A pair is comparable if the earlier time is an event, or if of equal times exactly one is. Equal risks
    count as a half. None if no pair is comparable.
    """
    risk, time, event = (np.asarray(values, dtype=np.float64) for values in (risk, time, event))
    concordant, comparable = 0.0, 0
    for index in np.flatnonzero(event):
        later = (time > time[index]) | ((time == time[index]) & (event == 0))
        comparable += int(later.sum())
        concordant += float((risk[later] < risk[index]).sum()) + 0.5 * float(
            (risk[later] == risk[index]).sum()
        )
    return concordant / comparable if comparable else None
