"""Which numbers of training a hospital keeps, as they would be of too few of its patients.

A mean loss over one training patient is that patient's, and an AUROC ranks the patients of the rarer outcome.
What leaves a hospital and what a simulation writes are held to the same rule, so that nothing made of either
has them: rounds.jsonl, status and live page, trackers, the mean by which a round is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from medfed.data.datamodule import SiteDataModule
from medfed.evaluation.metrics import metric_of
from medfed.federation.egress import Egress, with_personal
from medfed.study.study import Study

TRAINING_LOSS = "train/loss"


class PatientCounts(NamedTuple):
    """How many of a hospital's patients its numbers of training say something of.

    trained, validated: the patients of each split; of survival, trained are those with an event.  rarer: the
    fewest validation patients of an outcome by which a score ranks, such as those with a finding; the
    patients with an event of survival; None where no score ranks by outcome.
    """

    trained: int
    validated: int
    rarer: int | None = None


def patient_counts(study: Study, data: SiteDataModule) -> PatientCounts:
    """Return the counts of one hospital's patients."""
    trained, validated = (len(data.patients(split)) for split in ("train", "val"))
    if study.task.needs == "survival":
        return PatientCounts(_events(data, "train"), validated, _events(data, "val"))
    if study.task.needs not in ("classify", "multilabel", "table"):
        return PatientCounts(trained, validated)
    return PatientCounts(trained, validated, _rarer_outcome(data))


def few_numbers(study: Study, counts: PatientCounts, smallest: int) -> frozenset[str]:
    """Return the names of a study's numbers that are of fewer than `smallest` of a hospital's patients.

    A rule that needs another loss of training (`needs_scalars`) gets that one: without it nothing is merged.
    """
    names = {TRAINING_LOSS} if counts.trained < smallest else set()
    if counts.validated < smallest:
        names |= {*with_personal(study.task.scores)}
    elif counts.rarer is not None and counts.rarer < smallest:
        names |= {*with_personal([name for name in study.task.scores if _by_outcome(study, name)])}
    return frozenset(names)


def under_counts(egress: Egress, study: Study, counts: PatientCounts) -> Egress:
    """Return what may leave a hospital with so many patients; unchanged where no result may leave at all."""
    if egress.smallest_group is None:
        return egress
    few = few_numbers(study, counts, egress.smallest_group)
    withheld = ("val",) if counts.validated < egress.smallest_group else ()
    return replace(egress, few=few, withheld=(*egress.withheld, *withheld), validated=counts.validated)


def _by_outcome(study: Study, score: str) -> bool:
    """Return whether a score says something of the patients of one outcome: of survival, each does."""
    if study.task.needs == "survival":
        return True
    return score != "val/loss" and metric_of(score.removeprefix("val/")).by_outcome


def _rarer_outcome(data: SiteDataModule) -> int | None:
    """Return the fewest validation patients with, or without, any class or finding that some have."""
    having: dict[Any, tuple[set[str], set[str]]] = {}
    for patient, outcomes in _outcomes(data):
        for name, present in outcomes.items():
            having.setdefault(name, (set(), set()))[present].add(patient)
    counts = [min(len(without), len(with_)) for without, with_ in having.values() if without and with_]
    return min(counts, default=None)


def _outcomes(data: SiteDataModule) -> Iterator[tuple[str, dict[Any, bool]]]:
    """Yield each validation case's patient, and which classes or findings it has and which it lacks."""
    dataset: Any = data.dataset("val")
    findings = getattr(getattr(dataset, "values", None), "findings", {})
    if findings:
        for case in data.cases("val"):
            known = {k: bool(x) for k, x in enumerate(findings[case.token]) if np.isfinite(x)}
            yield case.patient, known
        return
    targets = _targets(data)
    for case, target in zip(data.cases("val"), targets, strict=True):
        yield case.patient, {name: name == target for name in set(targets)}


def _targets(data: SiteDataModule) -> list[int | None]:
    if data.is_table:
        return [int(target) for target in data.rows.targets[data.rows.in_split("val")]]
    return [case.target for case in data.cases("val")]


def _events(data: SiteDataModule, split: str) -> int:
    """Return the number of patients with an event."""
    happened = data.rows.targets[data.rows.in_split(split)][:, 1] > 0
    return len({case.patient for case, event in zip(data.cases(split), happened, strict=True) if event})
