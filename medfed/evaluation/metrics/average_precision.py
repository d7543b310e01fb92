"""Average precision: the area under the curve of precision against recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medfed.evaluation.classification import average_precision_of
from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import (
    ClassGroup,
    ClassificationMetrics,
    FindingsGroup,
    Metric,
    OneClass,
    macro,
)


class AveragePrecision(ClassificationMetrics, frozen=True, tag="average_precision"):
    """Precision at each threshold, weighted by the recall it adds; of several classes, their mean."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("auprc", "Average precision", 310, description="area under precision and recall"),
    )

    def of_class(self, group: OneClass) -> Mapping[str, Interval]:
        """Return the average precision, with the prevalence in the note, which chance would reach."""
        no_positive = "no patient of this class" if not group.y.any() else None
        interval = group.interval(average_precision_of(group.p, group.y), no_positive)
        if interval.value is not None:
            prevalence = f"by chance it would be the prevalence, {group.y.mean():.2f}"
            interval = interval._replace(note=interval.note or prevalence)
        return {"auprc": interval}

    def over_classes(self, group: ClassGroup) -> Mapping[str, Interval]:
        """Return the mean over classes."""
        singles = [group.single(number) for number in range(len(group.names))]
        return {
            "auprc": group.interval(macro([average_precision_of(single.p, single.y) for single in singles]))
        }

    def over_findings(self, group: FindingsGroup) -> Mapping[str, Interval]:
        """Return the mean over findings."""
        return {"auprc": group.macro(lambda one: average_precision_of(one.p, one.y))}
