"""The loss of a hospital that labelled some of the classes only: what it did not label
counts as its background.

Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ segmentation,
Medical Image Analysis 2021, arXiv:2007.03868. In such a hospital's labels "background" means background or
any class that nobody drew; so the probabilities of these are added before the loss, which then asks for no
more than the labels say. Added probabilities are a softmax over logits of which theirs became one by
log-sum-exp, so every loss of logits can be used as it is. Departure: the exclusion loss is left out; that
classes exclude each other is in the softmax already.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from medfed.models.losses import Criterion, Loss

if TYPE_CHECKING:
    from torch import Tensor


def marginal(loss: Loss, classes: int, labelled: tuple[int, ...]) -> Criterion:
    """Return the loss of logits (B, K, ...) over all classes against labels of the labelled ones only.

    `labelled` are the numbers of the foreground classes that the hospital drew. What a label holds of another
    class is taken for background, for the hospital says that it did not draw that one reliably.
    """
    kept = tuple(sorted(labelled))
    if kept == tuple(range(1, classes)):
        return loss.build(classes)
    weights = getattr(loss, "weights", None)
    if weights is not None and len(weights) == classes:
        loss = msgspec.structs.replace(loss, weights=tuple(weights[index] for index in (0, *kept)))
    return partial(_marginal, criterion=loss.build(1 + len(kept)), kept=kept)


def _marginal(logits: Tensor, target: Tensor, *, criterion: Criterion, kept: tuple[int, ...]) -> Tensor:
    return criterion(merged_logits(logits, kept), merged_target(target, kept))


def merged_logits(logits: Tensor, kept: tuple[int, ...]) -> Tensor:
    """Return logits (B, 1 + len(kept), ...) whose softmax adds the probabilities of
    background and unlabelled classes.
    """
    import torch

    rest = [index for index in range(logits.shape[1]) if index not in kept]
    background = torch.logsumexp(logits[:, rest], dim=1, keepdim=True)
    return torch.cat([background, logits[:, list(kept)]], dim=1)


def merged_target(target: Tensor, kept: tuple[int, ...]) -> Tensor:
    """Return class numbers as `merged_logits` counts them: kept classes from 1 in their order, all others 0."""
    import torch

    merged = torch.zeros_like(target)
    for number, index in enumerate(kept, start=1):
        merged[target == index] = number
    return merged
