"""Brier score of predicted survival at some times, and its integral (Graf et al., Stat. Med. 1999)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from medfed.evaluation.intervals import Floats, Interval
from medfed.evaluation.metrics import Difference, Metric, SurvivalGroup, SurvivalMetrics
from medfed.evaluation.paired_tests import paired_difference
from medfed.evaluation.survival import brier_of, integrated_terms


class SurvivalBrier(SurvivalMetrics, frozen=True, tag="survival_brier"):
    """Squared error of the predicted chance of living beyond a time, weighted for censoring.

    Across machines the times are quartiles of the event times of one hospital's own patients, in a small
    hospital those of single patients, and the baseline hazard behind them is that hospital's. So two
    hospitals' scores are of different times, and the metrics are not comparable.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "integrated_brier", "Integrated Brier score", 510, better="lower", compared=True, comparable=False
        ),
        Metric(
            "brier@", "Brier score", 520, better="lower", description="censoring-weighted", comparable=False
        ),
    )

    def describe(self, name: str) -> Metric | None:
        """Return the metric with its time in the title."""
        metric = super().describe(name)
        if metric is None or name == metric.name:
            return metric
        return replace(metric, title=f"Brier score at {name.removeprefix('brier@')}")

    def of_group(self, group: SurvivalGroup) -> Mapping[str, Interval]:
        """Return the score at every predicted time, and over two times or more their integral."""
        _, times, events, curves = group.patients
        parts = {at: brier_of(some, times, events, at) for at, some in sorted(curves.items())}
        scores = {}
        for at, statistic in parts.items():
            interval = group.resampling.interval(statistic, len(times))
            if interval.value is None and len(times):
                interval = interval._replace(note="nobody was followed beyond this time")
            scores[f"brier@{at:g}"] = interval
        if len(parts) > 1:
            ats = np.array(list(parts))

            def integrated(counts: Floats) -> Floats:
                values = np.stack([part(counts) for part in parts.values()], axis=1)
                return np.asarray(np.trapezoid(values, ats, axis=1) / (ats[-1] - ats[0]))

            scores["integrated_brier"] = group.resampling.interval(integrated, len(times))
        return scores

    def difference(self, first: SurvivalGroup, second: SurvivalGroup) -> Difference | None:
        """Return the integral's difference with a sign-flip test, over the times that both models have."""
        shared = sorted(first.patients.curves.keys() & second.patients.curves.keys())
        if len(shared) < 2:
            return None
        ours, theirs = (
            integrated_terms({at: some.curves[at] for at in shared}, some.times, some.events)
            for some in (first.patients, second.patients)
        )
        if not np.isfinite(ours).any():
            return None
        interval, p = paired_difference(ours, theirs, first.resampling)
        return Difference("integrated_brier", None, interval, p, "sign-flip permutation")
