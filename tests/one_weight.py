"""Updates of a model with a single weight, so that a merge can be computed by hand."""

from __future__ import annotations

import torch

from medfed.aggregation import Rule
from medfed.wire.update import Update


def update(site: str, delta: float, examples: int, round: int = 3, **scalars: float) -> Update:
    """Return an update that moves the weight by `delta`; `train_steps=2` is the scalar 'train/steps'."""
    named = {name.replace("_", "/", 1): value for name, value in scalars.items()}
    return Update(site, round, {"w": torch.tensor([delta], dtype=torch.float64)}, examples, named)


def merged(rule: Rule, *updates: Update) -> float:
    """Return the weight, 0 before, after one merge of these updates."""
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    return float(rule.merge(updates, rule.init(weights), weights)[0]["w"])
