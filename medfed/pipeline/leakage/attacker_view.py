"""The update as an attacker sees it, decoded from the bytes that the exchange carries.

A training runs as at a deployed site (`train_site`: Trainer, callback, privacy mechanism, compression, a
temporary ledger) over the memory exchange. If the mechanism reveals single updates, the attacker sees this
one at the hub. If the hub sees only the sites' sum, or if only the hub sees more (central noise), the
attacker sees the merged model: the site's update among stand-ins, which are other cases of the same hospital,
in as many parts as the study needs sites.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medfed.aggregation.fedavg import FedAvg
from medfed.data.samplers import collate
from medfed.errors import PrivacyError
from medfed.exchange import MemoryExchange
from medfed.federation.config import HubConfig
from medfed.federation.simulation import simulate
from medfed.federation.site import ChargedPatients, SiteRun, train_site
from medfed.pipeline.factory import module_of, site_config_of
from medfed.privacy import NoPrivacy, Privacy
from medfed.privacy.accounting.ledger import data_set
from medfed.study.study import Study
from medfed.wire.weights import Weights, load, weights_of

Item = dict[str, Any]


class _Data(pl.LightningDataModule):
    """Cases that are read once, so that training sees the same voxels as the attack's reference."""

    def __init__(self, items: Sequence[Item], batch: int) -> None:
        super().__init__()
        self._items: Any = list(items)
        self._batch = min(batch, len(items))

    def train_dataloader(self) -> DataLoader[Item]:
        return DataLoader(self._items, self._batch, shuffle=True, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Item]:
        return DataLoader(self._items[:1], 1, collate_fn=collate)  # this score is not used


def visible_update(
    study: Study, items: Sequence[Item], rest: Sequence[Item], privacy: Privacy, start: Weights
) -> dict[str, Tensor]:
    """Return the difference to `start` that an attacker sees after a study's only round over `items`.

    The stand-ins train on `rest`, which is used if single updates are hidden.

    Raises:
        PrivacyError: if stand-ins are needed and there are none, or the mechanism cannot train this.
    """
    if privacy.reveals_each_update:
        return _round(study, {"site": items}, privacy, start)
    others = _stand_ins(rest, study.minimum - 1, study.train.batch)
    if not others:
        raise PrivacyError(
            "an attacker sees only the sites' sum, and too few cases stand in for the other sites"
        )
    parties = {"site": items, **{f"other{k}": part for k, part in enumerate(others)}}
    # The masks of a secure sum cancel to the plain sum, bit for bit; the hub's central noise is added.
    summed = privacy if privacy.round_cost() is not None else NoPrivacy()
    if len(parties) < summed.min_sites:
        raise PrivacyError(
            f"an attacker sees a sum of at least {summed.min_sites} sites only, and the cases make "
            f"{len(parties)} parts to stand in for them; take fewer cases per step (--cases), or a hospital "
            "with more cases"
        )
    return _round(study, parties, summed, start)


def _round(
    study: Study, parties: Mapping[str, Sequence[Item]], privacy: Privacy, start: Weights
) -> dict[str, Tensor]:
    """Return what a round over the parties' cases adds to `start`."""
    names = tuple(sorted(parties))
    training = replace(site_config_of(study), local=None, privacy=privacy, parties=names, on_all_from=None)
    config = HubConfig(
        rounds=1,
        sites=names,
        rule=FedAvg(),
        privacy=privacy,
        minimum=len(parties),
        seed=training.seed,
        compress=training.compress,
        outlier=None,  # an attacker sees the update of a step at rate 1 however large it is
    )
    failures: list[BaseException] = []

    def train(name: str, folder: Path, exchange: MemoryExchange) -> None:
        items = parties[name]
        try:
            data = _Data(items, training.batch)
            train_site(name, module_of(study), data, exchange, training, _site_run(items, folder / name))
        except BaseException as error:
            failures.append(error)
            raise

    with tempfile.TemporaryDirectory(prefix="medfed-leakage-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            final = simulate({name: partial(train, name, Path(folder)) for name in parties}, start, config)
        except Exception:
            if failures:
                raise failures[0] from None
            raise
    return {name: tensor.double() - start[name].double() for name, tensor in final.weights.items()}


def _site_run(items: Sequence[Item], folder: Path) -> SiteRun:
    folder.mkdir()
    patients: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        patients.setdefault(item["case"], []).append(number)
    ledger = ChargedPatients("leakage", data_set(patients, b"leakage"), list(patients.values()))
    return SiteRun(folder, examples=len(items), patients=ledger)


def _stand_ins(items: Sequence[Item], parts: int, min_items: int) -> list[list[Item]]:
    """Return up to `parts` disjoint parts of the items, each with at least `min_items`."""
    parts = min(parts, len(items) // max(min_items, 1))
    return [list(items[k::parts]) for k in range(parts)]


@torch.no_grad()
def module_after(study: Study, start: Weights, difference: Weights) -> pl.LightningModule:
    """Return the study's module after an update; a tensor that the difference lacks is unchanged."""
    module = module_of(study)
    changed = {name: tensor.double() + difference.get(name, 0.0) for name, tensor in start.items()}
    load(module, {**weights_of(module), **{name: tensor.float() for name, tensor in changed.items()}})
    return module


def loss_of(module: pl.LightningModule, batch: Item) -> Tensor:
    """Return the module's training loss of a batch.

    Raises:
        PrivacyError: if its `training_step` returns something else.
    """
    result = module.training_step(batch, 0)
    loss = result["loss"] if isinstance(result, dict) else result
    if not isinstance(loss, Tensor):
        raise PrivacyError(
            f"{type(module).__name__}: training_step returned {type(result).__name__}; a leakage audit needs "
            "the loss of a batch"
        )
    return loss
