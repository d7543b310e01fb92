"""The attacks of a leakage audit: a hospital attacks its own updates, before they leave, with its own cases.

Each attack is tried without protection and with the study's own. The findings name no case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medfed.data.datamodule import SiteDataModule
from medfed.data.splits import SPLITS
from medfed.errors import PrivacyError
from medfed.pipeline.leakage.attacker_view import Item
from medfed.pipeline.leakage.findings import AttackBudget, Findings, Inversion
from medfed.pipeline.leakage.invert_updates import attack_update
from medfed.pipeline.leakage.membership import attack_membership
from medfed.privacy import NoPrivacy, Privacy
from medfed.registry import kind_of
from medfed.study.study import Study
from medfed.wire.weights import Weights

# The cases of a larger batch are not easier to separate, and cost proportionally more.
MAX_CASES = 8
# Other cases that an inverted one is compared with, at least.
MIN_OTHERS = 3


def run_attacks(
    study: Study, site: str, data: SiteDataModule, budget: AttackBudget, start: Weights | None = None
) -> Findings:
    """Return what a hospital's updates reveal, without any protection and with the study's own.

    `start` is the model from which the attacked updates are trained, the study's untrained one if None.

    Raises:
        PrivacyError: if the hospital has too few cases to compare with.
    """
    items = _shuffled_items(data, budget.seed)
    wanted = min(budget.cases or study.train.batch, MAX_CASES)
    counts = sorted({1, wanted} if study.task.needs != "survival" else {max(2, wanted)})
    if len(items) < counts[-1] + MIN_OTHERS:
        raise PrivacyError(
            f"site '{site}': {len(items)} cases; a leakage audit attacks {counts[-1]} and compares them with "
            f"at least {MIN_OTHERS} others (--cases takes fewer)"
        )
    mechanisms: list[Privacy] = [NoPrivacy()]
    if kind_of(study.privacy) != "none":
        mechanisms.append(study.privacy)
    inverted: list[Inversion] = []
    pictures: dict[str, Tensor] = {}
    for privacy in mechanisms:
        for count in counts:
            inversion, reconstructed = attack_update(study, items, count, privacy, budget, start)
            inverted.append(inversion)
            if count == counts[0]:
                pictures |= reconstructed
    members, notes = attack_membership(study, items, mechanisms, budget)
    return Findings(
        study.name,
        site,
        study.task.needs,
        tuple(inverted),
        tuple(members),
        (*_privacy_notes(study.privacy), *notes),
        pictures,
    )


def _shuffled_items(data: SiteDataModule, seed: int) -> list[Item]:
    """Return the items of all splits, in an order that the seed decides."""
    items: list[Item] = []
    for split in SPLITS:
        if data.cases(split):
            dataset: Any = data.dataset(split, training=True)
            items += [dataset[number] for number in range(len(dataset))]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return [items[number] for number in order]


def _privacy_notes(privacy: Privacy) -> list[str]:
    """Return what a reader of the findings should know about the study's privacy mechanism."""
    notes = []
    if privacy.trains_privately:
        notes.append(
            "Under dp_sgd the attacked single step spends the whole study's epsilon: it has less noise than "
            "any other."
        )
    if kind_of(privacy) == "client_dp" and not privacy.reveals_each_update:
        notes.append(
            "Under client_dp with where: hub, the hub itself sees the unprotected update; others see the "
            "noised one."
        )
    if kind_of(privacy) == "ckks":
        notes.append(
            "Under ckks a hospital that gives the hub its key opens every update: then the results without "
            "protection apply."
        )
    if not privacy.reveals_each_update:
        notes.append("Single updates are hidden: the sum with other cases of this hospital was attacked.")
    return notes
