"""Membership inference: whether a patient was among the training cases, inferred from a model's losses.

`auc` of the losses themselves is the plain attack (Yeom, Giacomelli, Fredrikson, Jha: Privacy Risk in Machine
Learning, CSF 2018, arXiv:1709.01604). `lira` compares a case's loss with its losses under models that were
trained with it and without it (Carlini, Chien, Nasr, Song, Terzis, Tramer: Membership Inference Attacks From
First Principles, IEEE S&P 2022, arXiv:2112.03570): a likelihood ratio of two normal distributions of the
loss's logit, with one variance for all cases, as the paper advises where shadow models are few. Every model
is the target once, the others are its shadows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# With fewer members or non-members than this, an advantage is not meaningful.
MIN_CASES = 10


def auc(members: Floats, others: Floats) -> float:
    """Return the share of pairs in which the member scores higher; 0.5 is guessing, ties count half."""
    pairs = members[:, None] - others[None, :]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


def tpr(members: Floats, others: Floats, fpr: float) -> float:
    """Return the share of members found where at most the share `fpr` of the others is taken for members.

    Carlini 2022: an attack that finds a few patients for certain and guesses at the rest has a low AUC. With
    fewer than 1 / fpr others, none of them may be taken for a member.
    """
    allowed = int(fpr * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    return float((members > np.sort(others)[::-1][allowed]).mean())


def advantage(area: float) -> float:
    """Return an area under the curve on the scale of the other attacks: 0 is guessing, 1 is certainty."""
    return max(0.0, 2 * area - 1)


def by_loss(losses: Floats, inside: Flags) -> float:
    """Return the AUC of the plain attack, from losses and membership, both (models, cases)."""
    return auc(*loss_scores(losses, inside))


def lira(losses: Floats, inside: Flags) -> float:
    """Return the AUC of the likelihood-ratio attack; 0.5 if no case can be compared. See `ratio_scores`."""
    members, others = ratio_scores(losses, inside)
    return auc(members, others) if len(members) and len(others) else 0.5


def loss_scores(losses: Floats, inside: Flags) -> tuple[Floats, Floats]:
    """Return the plain attack's scores of members and of others, higher for likelier members."""
    return -losses[inside], -losses[~inside]


def ratio_scores(losses: Floats, inside: Flags) -> tuple[Floats, Floats]:
    """Return the likelihood ratios of members and of others, with each model as the target of the others.

    `losses` and `inside` are (models, cases): a case's loss under a model, and whether the model was trained
    on it. A case that the other models all saw, or none saw, is left out for that target.
    """
    logits = logit(losses)
    scores: list[float] = []
    members: list[bool] = []
    for target in range(len(losses)):
        others = np.arange(len(losses)) != target
        seen, values = inside[others], logits[others]
        counts = seen.sum(0)
        usable = (counts > 0) & (counts < len(seen))
        ratio = _log_density(logits[target], values, seen) - _log_density(logits[target], values, ~seen)
        scores += ratio[usable].tolist()
        members += inside[target][usable].tolist()
    score, member = np.array(scores), np.array(members, bool)
    return score[member], score[~member]


def logit(losses: Floats) -> Floats:
    """Return log(p / (1 - p)) of p = exp(-loss), the paper's phi, which is nearly normal over models."""
    clipped = np.clip(losses, 1e-7, 50.0)
    return -clipped - np.log(-np.expm1(-clipped))


def _log_density(logits: Floats, values: Floats, chosen: Flags) -> Floats:
    """Return the log density of logits (cases) under normal distributions of the chosen values per case.

    The variance is one for all cases; a constant is omitted.
    """
    means: Floats = np.where(chosen, values, 0.0).sum(0) / np.maximum(chosen.sum(0), 1)
    residual = np.where(chosen, values - means, 0.0)
    freedom = max(int(chosen.sum()) - int((chosen.sum(0) > 0).sum()), 1)
    variance = float((residual**2).sum() / freedom) + 1e-6
    logarithm: Floats = -0.5 * ((logits - means) ** 2 / variance + np.log(variance))
    return logarithm
