"""Membership inference on one hospital's model, as an attacker sees it after the study's training."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from medfed.data.samplers import collate
from medfed.pipeline.factory import module_of
from medfed.pipeline.leakage.attacker_view import Item, loss_of, module_after, visible_update
from medfed.pipeline.leakage.findings import AttackBudget, Membership
from medfed.privacy import Privacy
from medfed.privacy.attacks.membership import (
    Flags,
    Floats,
    by_loss,
    lira,
    loss_scores,
    ratio_scores,
    tpr,
)
from medfed.registry import kind_of
from medfed.study.study import Study
from medfed.wire.weights import weights_of

# Fewer models than this cannot serve as each other's shadow models.
MIN_SHADOWS = 8


def attack_membership(
    study: Study, items: Sequence[Item], mechanisms: Sequence[Privacy], budget: AttackBudget
) -> tuple[list[Membership], list[str]]:
    """Return the result under each mechanism, and notes on what was not tried."""
    if study.task.needs == "survival":
        return [], [
            "Membership was not tried: a survival loss compares patients and has no value for one patient."
        ]
    if len(items) < 4 or budget.shadows < 2:
        return [], ["Membership was not tried."]
    results, notes = [], []
    for privacy in mechanisms:
        losses, inside = _train_shadows(study, items, privacy, budget)
        if len(losses) < budget.shadows:
            notes.append(
                f"{len(losses)} of {budget.shadows} shadow models were trained in {budget.budget_s:g} s "
                "(--minutes)."
            )
        table, flags = np.array(losses), np.array(inside)
        results.append(_membership(kind_of(privacy), table, flags))
    return results, notes


def _membership(privacy: str, losses: Floats, inside: Flags) -> Membership:
    """Return what the attacks find in losses and membership, both (models, cases)."""
    enough = len(losses) >= MIN_SHADOWS
    attacks = [loss_scores(losses, inside)] + ([ratio_scores(losses, inside)] if enough else [])
    found = {fpr: max(tpr(*scores, fpr) for scores in attacks if len(scores[0])) for fpr in (0.001, 0.01)}
    ratio = lira(losses, inside) if enough else None
    models, cases = losses.shape
    return Membership(privacy, models, cases, by_loss(losses, inside), ratio, found[0.001], found[0.01])


def _train_shadows(
    study: Study, items: Sequence[Item], privacy: Privacy, budget: AttackBudget
) -> tuple[list[list[float]], list[NDArray[np.bool_]]]:
    """Return each shadow model's loss on every item, and which items it was trained on."""
    start = weights_of(module_of(study), study.keep_local, trained_only=study.trained_only)
    train = msgspec.structs.replace(study.train, rounds=1, epochs=study.epochs)
    whole = msgspec.structs.replace(study, train=train, site_overrides={})
    generator = np.random.default_rng(budget.seed)
    losses, inside, began = [], [], time.monotonic()
    for _ in range(budget.shadows):
        members = np.zeros(len(items), bool)
        members[generator.permutation(len(items))[: len(items) // 2]] = True
        trained = [items[number] for number in np.flatnonzero(members).tolist()]
        rest = [items[number] for number in np.flatnonzero(~members).tolist()]
        difference = visible_update(whole, trained, rest, privacy.planned(study.train.rounds), start)
        losses.append(_losses(module_after(whole, start, difference), items))
        inside.append(members)
        spent_s = time.monotonic() - began
        if spent_s * (len(losses) + 1) / len(losses) > budget.budget_s and len(losses) >= 2:
            break
    return losses, inside


@torch.no_grad()
def _losses(module: pl.LightningModule, items: Sequence[Item]) -> list[float]:
    module.eval()
    return [float(loss_of(module, collate([item]))) for item in items]
