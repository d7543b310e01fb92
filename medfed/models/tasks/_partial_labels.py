"""The loss of a hospital that labelled only some of the classes: the others count as its background.

Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ segmentation,
Medical Image Analysis 2021, arXiv:2007.03868. In such a hospital's labels "background" means background or
any unlabelled class, so the probabilities of these are added before the loss. The added probabilities are a
softmax over logits in which theirs are merged by log-sum-exp, so every loss of logits can be used unchanged.
Departure: the exclusion loss is omitted, because the softmax already makes classes exclude each other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from medfed.models.losses import Criterion, Loss

if TYPE_CHECKING:
    from torch import Tensor


def marginal(loss: Loss, classes: int, labelled: tuple[int, ...]) -> Criterion:
    """Return the loss of logits (B, K, ...) over all classes against labels of the labelled classes only.

    `labelled` are the numbers of the foreground classes that the hospital labelled. Voxels of other classes
    count as background, because the hospital states that it did not label them reliably.
    """
    labelled = tuple(sorted(labelled))
    if labelled == tuple(range(1, classes)):
        return loss.build(classes)
    weights = getattr(loss, "weights", None)
    if weights is not None and len(weights) == classes:
        loss = msgspec.structs.replace(loss, weights=tuple(weights[index] for index in (0, *labelled)))
    return partial(_marginal, criterion=loss.build(1 + len(labelled)), labelled=labelled)


def _marginal(logits: Tensor, target: Tensor, *, criterion: Criterion, labelled: tuple[int, ...]) -> Tensor:
    return criterion(merged_logits(logits, labelled), merged_target(target, labelled))


def merged_logits(logits: Tensor, labelled: tuple[int, ...]) -> Tensor:
    """Return logits (B, 1 + L, ...) whose softmax adds the probabilities of
    background and unlabelled classes.
    """
    import torch

    rest = [index for index in range(logits.shape[1]) if index not in labelled]
    background = torch.logsumexp(logits[:, rest], dim=1, keepdim=True)
    return torch.cat([background, logits[:, list(labelled)]], dim=1)


def merged_target(target: Tensor, labelled: tuple[int, ...]) -> Tensor:
    """Return the class numbers of `merged_logits`: labelled classes from 1 in their order, all others 0."""
    import torch

    merged = torch.zeros_like(target)
    for number, index in enumerate(labelled, start=1):
        merged[target == index] = number
    return merged
