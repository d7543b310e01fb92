"""Area under the ROC curve, with DeLong's interval and test (Biometrics 1988)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.classification import auroc_of, delong, delong_test
from medfed.evaluation.intervals import Floats, Interval, Statistic
from medfed.evaluation.metrics import (
    ClassGroup,
    ClassificationMetrics,
    Difference,
    FindingsGroup,
    Metric,
    OneClass,
    SubgroupStatistic,
    macro,
)


def _statistic(one: OneClass) -> Statistic:
    return auroc_of(one.p, one.y)


class Auroc(ClassificationMetrics, frozen=True, tag="auroc"):
    """Chance that a patient of the class ranks above one of the others; of several classes, their mean."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "auroc",
            "AUROC",
            300,
            description="chance that a patient with the disease ranks above one without",
            headline=True,
            compared=True,
        ),
    )

    def of_class(self, group: OneClass) -> Mapping[str, Interval]:
        """Return DeLong's interval, with the bootstrap's in the note, so that both can be compared."""
        interval = delong(group.p, group.y)
        if interval.low is None or interval.method.startswith("exact"):
            return {"auroc": interval}
        other = group.resampling.interval(auroc_of(group.p, group.y), len(group.p))
        if other.low is None:
            return {"auroc": interval}
        return {"auroc": interval._replace(note=f"{other.method}: {other.low:.3f} to {other.high:.3f}")}

    def over_classes(self, group: ClassGroup) -> Mapping[str, Interval]:
        """Return the mean over classes."""
        parts = [auroc_of(group.p[:, number], group.y == number) for number in range(len(group.names))]
        return {"auroc": group.interval(macro(parts))}

    def difference(self, first: ClassGroup, second: ClassGroup, min_patients: int) -> Difference | None:
        """Return the difference with the paired DeLong test; of several classes, without a test."""
        if min(first.outcomes()) < max(min_patients, 2):
            return None
        if first.binary:
            interval, p = delong_test(first.p[:, 1], second.p[:, 1], first.y == 1)
            return Difference("auroc", None, interval, p, "paired DeLong")
        parts = [
            (auroc_of(first.p[:, c], first.y == c), auroc_of(second.p[:, c], first.y == c))
            for c in range(len(first.names))
        ]

        def statistic(counts: Floats) -> Floats:
            return np.asarray(np.mean([ours(counts) - theirs(counts) for ours, theirs in parts], axis=0))

        interval = first.resampling.interval(statistic, len(first.y))
        return Difference("auroc", None, interval, None, "no test")

    def over_findings(self, group: FindingsGroup) -> Mapping[str, Interval]:
        """Return the mean over findings."""
        return {"auroc": group.macro(_statistic)}

    def findings_differences(self, first: FindingsGroup, second: FindingsGroup) -> list[Difference]:
        """Return each finding's difference with the paired DeLong test, and the mean's without a test."""
        differences = []
        for number in first.averaged():
            ours, theirs = first.single(number), second.single(number)
            interval, p = delong_test(ours.p, theirs.p, ours.y)
            differences.append(Difference("auroc", first.names[number], interval, p, "paired DeLong"))
        ours_mean, theirs_mean = first.mean_over(_statistic), second.mean_over(_statistic)
        if ours_mean is None or theirs_mean is None:
            return differences

        def statistic(counts: Floats) -> Floats:
            return np.asarray(ours_mean(counts) - theirs_mean(counts))

        interval = first.resampling.interval(statistic, len(first.predictions.p))
        return [Difference("auroc", None, interval, None, "no test"), *differences]

    def subgroup(self, group: ClassGroup) -> SubgroupStatistic | None:
        """Return the AUROC of two classes."""
        if not group.binary:
            return None
        p, y = group.p[:, 1], group.y == 1
        return SubgroupStatistic("auroc", None, lambda some: auroc_of(p[some], y[some]), (y, ~y))
