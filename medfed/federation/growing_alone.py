"""A tree model of one site's own cases, or of pooled ones, which the rule grows without a hub."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from medfed.aggregation import Rule, State
from medfed.federation.examples import Pass, count_examples
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights, load, weights_of


class GrowsAlone(pl.Callback):
    """Merges one site's sums by the study's rule after every epoch, as the hub merges those of all."""

    def __init__(self, site: str, rule: Rule) -> None:
        self._site, self._rule = site, rule
        self._weights: Weights = {}
        self._state: State = {}
        self._pass = Pass()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._weights = weights_of(pl_module)
        self._state = self._rule.init(self._weights)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pass = (self._pass if batch_idx else Pass()).after(batch)
        if trainer.is_last_batch:
            delta = Difference(weights_of(pl_module), self._weights)
            examples = count_examples(trainer, pl_module, self._pass)
            update = Update(self._site, trainer.current_epoch + 1, delta, examples)
            self._weights, self._state = self._rule.merge([update], self._state, self._weights)
            load(pl_module, self._weights)
