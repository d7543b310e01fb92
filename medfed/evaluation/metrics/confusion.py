"""What a classifier's calls at its operating point are worth: the confusion matrix in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.classification import confusion_cells, f1_of, mcc_of, proportion, shown_threshold
from medfed.evaluation.intervals import Floats, Interval, Statistic, mean_of, ratio
from medfed.evaluation.metrics import (
    ClassGroup,
    ClassificationMetrics,
    FindingsGroup,
    Metric,
    OneClass,
    SubgroupStatistic,
    macro,
)

AT_POINT = "at the operating point fixed on validation patients"
AT_PREVALENCE = "at the operating point, at this prevalence"


def _sensitivity(one: OneClass) -> Statistic:
    called, present = one.p >= one.threshold, one.y
    return _share((called & present).astype(np.float64), present.astype(np.float64))


def _specificity(one: OneClass) -> Statistic:
    called, absent = one.p >= one.threshold, ~one.y
    return _share((~called & absent).astype(np.float64), absent.astype(np.float64))


def _share(part: Floats, whole: Floats) -> Statistic:
    return lambda counts: ratio(counts @ part, counts @ whole)


class Confusion(ClassificationMetrics, frozen=True, tag="confusion"):
    """Sensitivity, specificity, predictive values, accuracy, prevalence, F1 and Matthews correlation.

    Of several classes together, the class with the largest probability is called.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("sensitivity", "Sensitivity", 320, description=AT_POINT),
        Metric("specificity", "Specificity", 330, description=AT_POINT),
        Metric("ppv", "Positive predictive value", 340, description=AT_PREVALENCE),
        Metric("npv", "Negative predictive value", 350, description=AT_PREVALENCE),
        Metric("accuracy", "Accuracy", 360, headline=True, by_outcome=False),
        Metric("balanced_accuracy", "Balanced accuracy", 370),
        Metric("f1", "F1", 380),
        Metric("mcc", "Matthews correlation", 390, lowest=-1.0),
        Metric("prevalence", "Prevalence", 450, better="none"),
    )

    def of_class(self, group: OneClass) -> Mapping[str, Interval]:
        """Return the metrics of the calls at the class's threshold."""
        p, y, n = group.p, group.y, len(group.p)
        tp, fp, fn, tn = (int(cell) for cell in confusion_cells(p, y, group.threshold).sum(axis=0))
        at = f"Wilson; threshold {shown_threshold(group.threshold)}, {group.source}"
        return {
            "sensitivity": proportion(tp, tp + fn, at, "no patient of this class"),
            "specificity": proportion(tn, tn + fp, at, "every patient is of this class"),
            "ppv": proportion(tp, tp + fp, at, "nobody above the threshold"),
            "npv": proportion(tn, tn + fn, at, "nobody below the threshold"),
            "accuracy": proportion(tp + tn, n, at, "no patients"),
            "prevalence": proportion(tp + fn, n, "Wilson", "no patients"),
            "f1": group.interval(f1_of(p, y, group.threshold), "neither called nor present"),
            "mcc": group.interval(mcc_of(p, y, group.threshold), "calls or outcomes are all alike"),
        }

    def over_classes(self, group: ClassGroup) -> Mapping[str, Interval]:
        """Return macro-averaged F1 and recall, and the share of patients whose class is called."""
        classes = len(group.names)
        called, true = np.eye(classes)[group.p.argmax(axis=1)], np.eye(classes)[group.y]

        def recall(number: int) -> Statistic:
            right, present = true[:, number] * called[:, number], true[:, number]
            return lambda counts: ratio(counts @ right, counts @ present)

        f1 = [f1_of(called[:, number], group.y == number, 0.5) for number in range(classes)]
        right = int((group.p.argmax(axis=1) == group.y).sum())
        return {
            "f1": group.interval(macro(f1)),
            "balanced_accuracy": group.interval(macro([recall(number) for number in range(classes)])),
            "accuracy": proportion(right, len(group.p), "Wilson", "no patients"),
        }

    def over_findings(self, group: FindingsGroup) -> Mapping[str, Interval]:
        """Return the means over findings, each at its own threshold."""
        return {
            "sensitivity": group.macro(_sensitivity),
            "specificity": group.macro(_specificity),
            "f1": group.macro(lambda one: f1_of(one.p, one.y, one.threshold)),
        }

    def subgroup(self, group: ClassGroup) -> SubgroupStatistic | None:
        """Return the accuracy of three or more classes."""
        if group.binary:
            return None
        right = (group.p.argmax(axis=1) == group.y).astype(np.float64)
        return SubgroupStatistic("accuracy", None, lambda some: mean_of(right[some]))
