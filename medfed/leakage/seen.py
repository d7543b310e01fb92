"""What the hub sees of a training: the update that comes out of the very bytes that the exchange carries.

A training runs under a real Trainer with the callback and the privacy mechanism that a deployed site uses, over the
memory exchange; its bytes are decoded as the hub decodes them. Where a mechanism shows the hub only the sites' sum, the
hub's view is the merge with stand-ins: other cases of the same hospital, as many parts as the study needs sites.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medfed.data.datamodule import collate
from medfed.errors import PrivacyError
from medfed.exchange import MemoryExchange
from medfed.federate import FederatedCallback
from medfed.privacy import NoPrivacy, Privacy
from medfed.rules.fedavg import FedAvg
from medfed.simulate import run_federation
from medfed.site import Training, trainer_of
from medfed.weights import Weights, load, weights_of

Item = dict[str, Any]


class Items(Dataset):
    """Cases that were read once: a training then sees the same voxels as the attack's reference."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]


def hub_sees(
    make: Any,
    items: Sequence[Item],
    others: Sequence[Sequence[Item]],
    training: Training,
    privacy: Privacy,
    batch: int,
    start: Weights,
) -> dict[str, Tensor]:
    """Return the difference to `start` that the hub sees after one round over `items`.

    `make` returns a fresh module. Where the mechanism hides single updates, `others` are the stand-ins' cases and the
    difference is that of all of them together.
    """
    if privacy.reveals_each_update:
        return _round(make, {"site": items}, training, privacy, batch, start)
    if not others:
        raise PrivacyError("the hub sees a sum only, and there are too few cases here to stand in for others")
    parties = {"site": items, **{f"other{k}": part for k, part in enumerate(others)}}
    return _round(make, parties, training, NoPrivacy(), batch, start)


def _round(
    make: Any,
    parties: dict[str, Sequence[Item]],
    training: Training,
    privacy: Privacy,
    batch: int,
    start: Weights,
) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="medfed-leakage-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failures: list[BaseException] = []

        def site(name: str) -> Any:
            def fit(exchange: MemoryExchange) -> None:
                try:
                    _fit(name, make(), parties[name], training, privacy, batch, exchange, Path(folder))
                except BaseException as error:
                    failures.append(error)
                    raise

            return fit

        try:
            final = run_federation(
                {name: site(name) for name in parties},
                start,
                rule=FedAvg(),
                rounds=1,
                privacy=privacy,
                minimum=len(parties),
                seed=training.seed,
            )
        except Exception:
            if failures:
                raise failures[0] from None
            raise
    return {name: tensor.double() - start[name].double() for name, tensor in final.weights.items()}


def _fit(
    name: str,
    module: pl.LightningModule,
    items: Sequence[Item],
    training: Training,
    privacy: Privacy,
    batch: int,
    exchange: MemoryExchange,
    folder: Path,
) -> None:
    callback = FederatedCallback(
        name, exchange, training.local_epochs, examples=len(items), privacy=privacy, seed=training.seed
    )
    trainer = trainer_of(training, folder, [callback], validate=False)
    loader = DataLoader(Items(items), min(batch, len(items)), shuffle=True, collate_fn=collate)
    trainer.fit(module, train_dataloaders=loader)


@torch.no_grad()
def with_difference(make: Any, start: Weights, difference: Weights) -> pl.LightningModule:
    """Return a module with the weights that the hub would get from a difference."""
    module = make()
    load(module, {**weights_of(module), **{n: (start[n].double() + difference[n]).float() for n in start}})
    return module
