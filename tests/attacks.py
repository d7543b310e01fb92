"""The quickstart's four hospitals under attack: a fifth site sends updates that would ruin the model.

The attackers do not train; the rule receives their updates together with those of the honest sites, which
train as in any run of the study. The attackers collude and know the honest updates, the strongest adversary
in the rules' papers.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

import medfed
from medfed.aggregation import Rule, State
from medfed.data.datamodule import SiteDataModule
from medfed.data.index import index_folder
from medfed.data.samplers import collate
from medfed.errors import RuleError
from medfed.federation.callback import FederatedCallback
from medfed.models.tasks._scores import dice_scores
from medfed.models.tasks._segmentation import overlap_counts
from medfed.pipeline.factory import module_of
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.update import Update
from medfed.wire.weights import Weights, load, weights_of

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
# A coarser grid, smaller patches, a smaller network and larger steps than the quickstart's, so that a run
# takes seconds.
SMALL = (
    "data.spacing_mm=[6,6,6]",
    "data.patch=[16,16,16]",
    "network.channels=[8,16]",
    "train.rounds=8",
    "train.epochs=4",
    "train.batch=4",
    "train.optimiser.lr=0.02",
)
# Baruch, Baruch, Goldberg: A Little Is Enough, NeurIPS 2019, arXiv:1902.06156: the attackers send the
# honest mean minus this many standard deviations. The paper's formula gives 0 for one attacker in five; 1.5
# comes from its experiments.
A_LITTLE = 1.5
# A plain sign flip by one of five sites only shortens FedAvg's step, so the attacker scales it up.
FLIPPED = -5.0
ATTACKS = ("sign_flip", "times_a_million", "random", "a_little")


class Attacked(Rule, tag="attacked", frozen=True):
    """A rule that also receives the updates of `attackers` more sites, derived from the honest ones."""

    rule: Any  # a Rule; its settings were checked when it was made
    attack: str
    attackers: int = 1

    def init(self, weights: Weights) -> State:
        return self.rule.init(weights)

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        honest = sorted(updates, key=lambda update: update.site)
        sent = attacked([update.delta for update in honest], self.attack, honest[0].round)
        # An attacker could report any number of examples. It reports no more than the largest honest site,
        # which is fair to FedAvg.
        most = max(update.examples for update in honest)
        bad = [
            replace(honest[0], site=f"attacker-{number}", delta=sent, examples=most)
            for number in range(self.attackers)
        ]
        return self.rule.merge([*honest, *bad], state, weights)


def attacked(honest: list[Weights], attack: str, round: int) -> dict[str, Tensor]:
    """Return the delta that every attacker sends."""
    generator = torch.Generator().manual_seed(round)
    result = {}
    for name in honest[0]:
        rows = torch.stack([delta[name].double() for delta in honest])
        mean = rows.mean(0)
        if attack == "sign_flip":
            result[name] = FLIPPED * mean
        elif attack == "times_a_million":
            result[name] = -1e6 * mean
        elif attack == "random":
            result[name] = 10 * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        else:
            result[name] = mean - A_LITTLE * rows.std(0)
        if name.endswith("running_var"):
            result[name] = mean  # a negative variance would only be easier to detect
    return result


@dataclass(frozen=True)
class Hospitals:
    """The quickstart's training cases as virtual sites, prepared once, and its held-back cases."""

    study: Study
    sites: dict[str, SiteDataModule]
    held_back: list[dict]


def hospitals(overrides: Iterable[str] = (), parts: int = 1) -> Hospitals:
    """Return the four hospitals, split into `parts` sites each, and their pooled held-back cases."""
    study = read_study(QUICKSTART, list(overrides))
    sites, held_back = {}, []
    for name, where in sorted(study.sites.items()):
        secret = hashlib.sha256(name.encode()).digest()
        index = index_folder(where, site_secret=secret)

        def data(cases, index=index) -> SiteDataModule:
            return SiteDataModule(
                replace(index, cases=tuple(cases)),
                study.data,
                "segment",
                batch=study.train.batch,
                seed=study.seed,
                classes=len(study.task.classes),
            )

        train = index.split("train")
        for part in range(parts):
            # Interleave the parts of the hospitals, so that the attackers do not form one hospital.
            sites[f"site-{part}-{name}"] = data(train[part::parts])
        whole = data(index.cases)
        for split in ("val", "test"):
            dataset = whole.dataset(split)
            held_back += [collate([dataset[number]]) for number in range(len(dataset))]
    return Hospitals(study, sites, held_back)


def dice_after(found: Hospitals, rule: Rule) -> float:
    """Return the mean Dice on the held-back cases after training with a rule; 0 where it diverged."""
    study = found.study
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    def site(name: str):
        def work(exchange):
            callback = FederatedCallback(
                name, exchange, study.train.epochs, seed=study.seed, examples=found.sites[name].examples
            )
            trainer = pl.Trainer(
                max_epochs=study.epochs,
                callbacks=[callback],
                gradient_clip_val=study.train.clip,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                accelerator="cpu",
                limit_val_batches=0,
            )
            trainer.fit(module_of(study), found.sites[name].train_dataloader())

        return work

    module = module_of(study)
    try:
        final = medfed.run_federation(
            {name: site(name) for name in found.sites},
            weights_of(module),
            rule=rule,
            rounds=study.train.rounds,
            minimum=len(found.sites),
            seed=study.seed,
        )
    except (RuleError, medfed.QuorumError):
        return 0.0  # the weights, or a site's training, overflowed
    load(module, final.weights)
    return dice(module, found.held_back, len(study.task.classes))


@torch.inference_mode()
def dice(module: pl.LightningModule, cases: list[dict], classes: int) -> float:
    """Return the mean Dice without cases whose reference and prediction are both empty."""
    module.eval()
    counts = []
    for batch in cases:
        logits = module(batch["image"]).float()
        if not bool(torch.isfinite(logits).all()):
            return 0.0
        counts.append(overlap_counts(module.task.labels(logits)[0], batch["label"][0], classes).numpy())
    return dice_scores(np.stack(counts)).mean or 0.0
