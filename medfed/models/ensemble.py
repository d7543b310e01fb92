"""Several trained models as one: the mean of what they predict.

An ensemble's weights are those of its members, each tensor under `members.<number>.`, so that one checkpoint
holds it. The mean of probabilities (and of a Cox model's log risks) is what nnU-Net and others take over the
folds of a cross-validation (Isensee et al., Nature Methods 2021, doi:10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from medfed.errors import RunError

PREFIX = "members."

# What a module predicts that has a mean, and what each other output is computed from.
AVERAGED = ("probabilities", "risk")


def join_members(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of an ensemble of these models."""
    return {
        f"{PREFIX}{number}.{name}": tensor
        for number, weights in enumerate(members)
        for name, tensor in weights.items()
    }


def members_of(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the weights of each member of an ensemble, in order; empty for a single model.

    Raises:
        RunError: if a member is missing between the others: the mean would be of fewer models.
    """
    if not weights or not all(name.startswith(PREFIX) for name in weights):
        return []
    members: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        number, _, inner = name.removeprefix(PREFIX).partition(".")
        members.setdefault(int(number), {})[inner] = tensor
    if lacking := sorted(set(range(max(members))) - set(members)):
        raise RunError(
            f"checkpoint: the ensemble's member {lacking[0]} of {max(members) + 1} has no weights in it, and "
            "the mean of the others is another model; the file is damaged: restore it, or make the ensemble "
            "anew"
        )
    return [members[number] for number in sorted(members)]


@final
class Ensemble(pl.LightningModule):
    """Predicts the mean of its members' probabilities or log risks; it does not train.

    Args:
        members: modules of one task.
        labels: class numbers of mean probabilities (B, K, X, Y, Z), for a segmentation.
    """

    def __init__(
        self, members: Sequence[pl.LightningModule], labels: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._labels = labels

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        outputs = [member.predict_step(batch, index) for member in self.members]  # type: ignore[operator]
        first: dict[str, Any] = outputs[0]
        means = {
            name: torch.stack([one[name] for one in outputs]).mean(dim=0)
            for name in AVERAGED
            if name in first
        }
        labels = {}
        if self._labels is not None and "label" in first:
            labels = {"label": self._labels(means["probabilities"])}
        return {"case": first["case"], **means, **labels}
