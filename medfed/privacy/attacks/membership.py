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


def advantage(area: float) -> float:
    """Return an area under the curve on the scale of the other attacks: 0 is guessing, 1 is certainty."""
    return max(0.0, 2 * area - 1)


def by_loss(losses: Floats, inside: Flags) -> float:
    """Return the AUC of the plain attack, from losses and membership, both (models, cases)."""
    return auc(-losses[inside], -losses[~inside])


def lira(losses: Floats, inside: Flags) -> float:
    """Return the AUC of the likelihood-ratio attack, with each model as the target of the others.

    `losses` and `inside` are (models, cases): a case's loss under a model, and whether the model was trained
    on it. A case that the other models all saw, or none saw, is left out for that target.
    """
    logits = logit(losses)
    scores: list[float] = []
    truths: list[bool] = []
    for target in range(len(losses)):
        others = np.arange(len(losses)) != target
        seen, values = inside[others], logits[others]
        counts = seen.sum(0)
        usable = (counts > 0) & (counts < len(seen))
        mean_in = _means(values, seen)
        mean_out = _means(values, ~seen)
        variance_in = _spread(values, seen, mean_in)
        variance_out = _spread(values, ~seen, mean_out)
        here = logits[target]
        ratio = _log_normal(here, mean_in, variance_in) - _log_normal(here, mean_out, variance_out)
        scores += ratio[usable].tolist()
        truths += inside[target][usable].tolist()
    found, member = np.array(scores), np.array(truths, bool)
    if member.all() or not member.any():
        return 0.5
    return auc(found[member], found[~member])


def logit(losses: Floats) -> Floats:
    """Return log(p / (1 - p)) of p = exp(-loss), the paper's phi, which is nearly normal over models."""
    clipped = np.clip(losses, 1e-7, 50.0)
    return -clipped - np.log(-np.expm1(-clipped))


def _means(values: Floats, chosen: Flags) -> Floats:
    means: Floats = np.where(chosen, values, 0.0).sum(0) / np.maximum(chosen.sum(0), 1)
    return means


def _spread(values: Floats, chosen: Flags, means: Floats) -> float:
    residual = np.where(chosen, values - means, 0.0)
    freedom = max(int(chosen.sum()) - int((chosen.sum(0) > 0).sum()), 1)
    return float((residual**2).sum() / freedom) + 1e-6


def _log_normal(values: Floats, means: Floats, variance: float) -> Floats:
    logarithm: Floats = -0.5 * ((values - means) ** 2 / variance + np.log(variance))
    return logarithm
