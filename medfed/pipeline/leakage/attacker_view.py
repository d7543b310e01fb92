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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medfed.aggregation.fedavg import FedAvg
from medfed.data.datamodule import collate
from medfed.errors import PrivacyError
from medfed.exchange import MemoryExchange
from medfed.federation.config import HubConfig, SiteConfig
from medfed.federation.simulation import simulate
from medfed.federation.site import PatientLedger, SiteRun, train_site
from medfed.privacy import NoPrivacy, Privacy
from medfed.privacy.accounting.ledger import data_set
from medfed.wire.weights import Weights, load, weights_of

Item = dict[str, Any]
ModuleFactory = Callable[[], pl.LightningModule]


class ItemDataset(Dataset[Item]):
    """Cases that are read once, so that training sees the same voxels as the attack's reference."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]


class _Data(pl.LightningDataModule):
    def __init__(self, items: Sequence[Item], batch: int) -> None:
        super().__init__()
        self._items, self._batch = items, min(batch, len(items))

    def train_dataloader(self) -> DataLoader[Item]:
        return DataLoader(ItemDataset(self._items), self._batch, shuffle=True, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Item]:
        return DataLoader(ItemDataset(self._items[:1]), 1, collate_fn=collate)  # this score is not used


def visible_update(
    make: ModuleFactory,
    items: Sequence[Item],
    others: Sequence[Sequence[Item]],
    training: SiteConfig,
    privacy: Privacy,
    start: Weights,
) -> dict[str, Tensor]:
    """Return the difference to `start` that an attacker sees after one round over `items`.

    `make` returns a new module. `others` are the cases of the stand-ins, used if single updates are hidden.

    Raises:
        PrivacyError: if stand-ins are needed and there are none, or the mechanism cannot train this.
    """
    if privacy.reveals_each_update:
        return _round(make, {"site": items}, replace(training, privacy=privacy), start)
    if not others:
        raise PrivacyError(
            "an attacker sees only the sites' sum, and too few cases stand in for the other sites"
        )
    parties = {"site": items, **{f"other{k}": part for k, part in enumerate(others)}}
    # The masks of a secure sum cancel to the plain sum, bit for bit; the hub's central noise is added.
    summed = privacy if privacy.round_cost() is not None else NoPrivacy()
    if len(parties) < summed.fewest_sites():
        raise PrivacyError(
            f"an attacker sees a sum of at least {summed.fewest_sites()} sites only, and the cases make "
            f"{len(parties)} parts to stand in for them; take fewer cases per step (--cases), or a hospital "
            "with more cases"
        )
    return _round(make, parties, replace(training, privacy=summed), start)


def _round(
    make: ModuleFactory, parties: dict[str, Sequence[Item]], training: SiteConfig, start: Weights
) -> dict[str, Tensor]:
    failures: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="medfed-leakage-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def site(name: str) -> Callable[[MemoryExchange], None]:
            def fit(exchange: MemoryExchange) -> None:
                try:
                    _fit(name, make(), parties[name], training, exchange, Path(folder) / name)
                except BaseException as error:
                    failures.append(error)
                    raise

            return fit

        try:
            config = HubConfig(
                rounds=1,
                sites=tuple(sorted(parties)),
                rule=FedAvg(),
                privacy=training.privacy,
                minimum=len(parties),
                seed=training.seed,
                compress=training.compress,
                outlier=None,  # an attacker sees the update of a step at rate 1 however large it is
            )
            final = simulate({name: site(name) for name in parties}, start, config)
        except Exception:
            if failures:
                raise failures[0] from None
            raise
    return {name: tensor.double() - start[name].double() for name, tensor in final.weights.items()}


def _fit(
    name: str,
    module: pl.LightningModule,
    items: Sequence[Item],
    training: SiteConfig,
    exchange: MemoryExchange,
    folder: Path,
) -> None:
    folder.mkdir()
    patients: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        patients.setdefault(item["case"], []).append(number)
    train_site(
        name,
        module,
        _Data(items, training.batch),
        exchange,
        training,
        SiteRun(
            folder,
            examples=len(items),
            patients=PatientLedger("leakage", data_set(patients, b"leakage"), list(patients.values())),
        ),
    )


def stand_ins(items: Sequence[Item], parts: int, min_items: int) -> list[list[Item]]:
    """Return up to `parts` disjoint parts of the items, each with at least `min_items`."""
    parts = min(parts, len(items) // max(min_items, 1))
    return [list(items[k::parts]) for k in range(parts)]


@torch.no_grad()
def module_after(make: ModuleFactory, start: Weights, difference: Weights) -> pl.LightningModule:
    """Return a module with the weights that result from a difference; a tensor that it lacks is unchanged."""
    module = make()
    changed = {name: tensor.double() + difference.get(name, 0.0) for name, tensor in start.items()}
    load(module, {**weights_of(module), **{name: tensor.float() for name, tensor in changed.items()}})
    return module


def loss_of(module: pl.LightningModule, batch: Item) -> Tensor:
    """Return the module's training loss of a batch."""
    loss = module.training_step(batch, 0)
    assert isinstance(loss, Tensor)
    return loss
