"""Each feature of Lightning, federated over two sites, against FedAvg as plain loops (tests/plain_fedavg.py).

The rows are those of docs/how-to/lightning-features.md, in its order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from monai.data import PatchDataset
from plain_fedavg import RATE, ROUNDS, SITES, Recipe, Site, entropy, plain_fedavg, sgd, tensors, wide
from plain_fedavg import train as plain_train
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import CombinedLoader
from simulated import simulated
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import QuorumError, StudyError
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import CallbackOptions
from medfed.wire.weights import as_real, weights_of

# Several threads for tensors of ten numbers only wait for each other.
torch.set_num_threads(1)

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "lightning-features.md"
BATCH = 4


def rows(site: str) -> TensorDataset:
    generator = torch.Generator().manual_seed(sum(site.encode()))
    features = torch.randn(SITES.get(site, 10), 4, generator=generator)
    return TensorDataset(features, (features[:, 0] > 0).long())


def loader(site: str, **settings) -> DataLoader:
    return DataLoader(rows(site), BATCH, **settings)


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())


class Net(pl.LightningModule):
    """A body with batch norm and a head, trained by a recipe."""

    def __init__(self, recipe: Recipe | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe or Recipe()
        self.body, self.head = parts.pop("body", None) or body(), nn.Linear(6, 2)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, index):
        return self.recipe.loss(self, batch)

    def validation_step(self, batch, index):
        self.log("val/loss", entropy(self, batch))

    def configure_optimizers(self):
        optimiser = self.recipe.optimiser(self)
        if self.recipe.schedule is None:
            return optimiser
        schedule = {"scheduler": self.recipe.schedule(optimiser), "interval": self.recipe.interval}
        return {"optimizer": optimiser, "lr_scheduler": {**schedule, "monitor": "val/loss"}}


PLAIN = Recipe()

Fit = Callable[[pl.Trainer, pl.LightningModule, Any, DataLoader], None]


def fit(trainer, module, data, held_out) -> None:
    trainer.fit(module, data, held_out)


@dataclass(frozen=True)
class Row:
    """One feature: how sites use it under Lightning, and what the plain loops do instead."""

    id: str
    recipe: Recipe = PLAIN
    net: Callable[[Recipe], pl.LightningModule] = Net
    data: Callable[[str], Any] = loader
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[Path], list] = lambda folder: []
    logger: Callable[[Path], Any] = lambda folder: False
    federated: dict[str, Any] = field(default_factory=dict)
    fit: Fit = fit
    start: Callable[[Callable[[], Any]], Any] = lambda make: make()
    # The plain side, where it is not that of the recipe.
    plain: Callable[[Site, int], None] = plain_train
    plain_data: Callable[[str], Any] | None = None
    examples: dict[str, int] = field(default_factory=lambda: dict(SITES))
    shared: Callable[[str], bool] = lambda name: True
    after_merge: Callable[[Site, int], None] = lambda site, epoch: None
    ends_merged: bool = True
    refused: str = ""
    slow: bool = False

    def make(self) -> pl.LightningModule:
        torch.manual_seed(1)
        return self.net(self.recipe)


# -- optimisation


def two_groups(model):
    groups = [{"params": model.body.parameters(), "lr": RATE / 10}, {"params": model.head.parameters()}]
    return torch.optim.SGD(groups, lr=RATE)


class ByHand(Net):
    """Takes the steps of one or two optimisers itself."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimisers = self.optimizers()
        for optimiser in optimisers if isinstance(optimisers, list) else [optimisers]:
            optimiser.zero_grad()
            self.manual_backward(entropy(self, batch))
            optimiser.step()


def two_optimisers(model):
    return [torch.optim.SGD(part.parameters(), lr=RATE) for part in (model.body, model.head)]


class Toggled(ByHand):
    """Trains body and head in turn, each with the other's gradients off."""

    def training_step(self, batch, index):
        for optimiser in self.optimizers():
            self.toggle_optimizer(optimiser)
            optimiser.zero_grad()
            self.manual_backward(entropy(self, batch))
            optimiser.step()
            self.untoggle_optimizer(optimiser)


def alternate(site: Site, epoch: int) -> None:
    site.model.train()
    for batch in site.data:
        for optimiser in site.optimiser:
            optimiser.zero_grad()
            entropy(site.model, batch).backward()
            optimiser.step()


def lbfgs(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)


def closures(site: Site, epoch: int) -> None:
    site.model.train()
    for batch in site.data:

        def closure(batch=batch):
            site.optimiser.zero_grad()
            loss = entropy(site.model, batch)
            loss.backward()
            return loss

        site.optimiser.step(closure)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def forget(site: Site, epoch: int) -> None:
    site.optimiser.state.clear()


class OwnStep(Net):
    """Warms the learning rate up in `optimizer_step`."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (batch_idx + 1) / 10
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


def warmed(site: Site, epoch: int) -> None:
    site.model.train()
    for number, batch in enumerate(site.data, 1):
        site.optimiser.param_groups[0]["lr"] = RATE * number / 10
        site.optimiser.zero_grad()
        entropy(site.model, batch).backward()
        site.optimiser.step()


class NoOptimiser(Net):
    def configure_optimizers(self):
        return None


def only_forward(site: Site, epoch: int) -> None:
    site.model.train()
    for batch in site.data:
        site.model(batch[0])


OPTIMISATION = [
    Row("sgd-momentum"),
    Row("adam", Recipe(optimiser=adam)),
    Row("adamw-weight-decay", Recipe(optimiser=lambda m: torch.optim.AdamW(m.parameters(), 0.01))),
    Row("fused-optimiser", Recipe(optimiser=lambda m: torch.optim.Adam(m.parameters(), 0.01, fused=True))),
    Row("lbfgs", Recipe(optimiser=lbfgs), plain=closures),
    Row("parameter-groups", Recipe(optimiser=two_groups)),
    Row("no-optimiser", net=NoOptimiser, plain=only_forward),
    Row("manual-optimisation", net=ByHand),
    Row("several-optimisers", Recipe(optimiser=two_optimisers), ByHand, plain=alternate),
    Row("toggled-optimisers", Recipe(optimiser=two_optimisers), Toggled, plain=alternate),
    Row("own-optimizer-step", net=OwnStep, plain=warmed),
    Row("optimiser-state-reset", Recipe(optimiser=adam), federated={"optimiser_state": "reset"},
        after_merge=forget),
]  # fmt: skip

# -- schedules


def plateau(optimiser):
    return ReduceLROnPlateau(optimiser, factor=0.1, patience=0, threshold=10.0)


def without_schedule(site: Site, epoch: int) -> None:
    schedule, site.schedule = site.schedule, None
    plain_train(site, epoch)
    site.schedule = schedule


def measure(site: Site, epoch: int) -> None:
    """Step the schedule by the loss of the merged model."""
    site.model.eval()
    with torch.no_grad():
        site.schedule.step(entropy(site.model, rows("val").tensors))


def warm_up(optimiser):
    parts = [LinearLR(optimiser, 0.1, total_iters=3), CosineAnnealingLR(optimiser, 5)]
    return SequentialLR(optimiser, parts, milestones=[3])


SCHEDULES = [
    Row("schedule-per-epoch", Recipe(schedule=lambda o: StepLR(o, 1, 0.5))),
    Row("schedule-over-all-rounds", Recipe(schedule=lambda o: CosineAnnealingLR(o, ROUNDS))),
    Row("schedule-per-step", Recipe(schedule=lambda o: OneCycleLR(o, RATE, total_steps=10), interval="step")),
    Row("warm-up", Recipe(schedule=warm_up, interval="step")),
    Row("reduce-on-plateau", Recipe(schedule=plateau), plain=without_schedule, after_merge=measure),
]

# -- gradients and precision


def clip_norm(parameters):
    return nn.utils.clip_grad_norm_(list(parameters), 0.05)


def clip_value(parameters):
    return nn.utils.clip_grad_value_(list(parameters), 0.01)


class OwnClipping(Net):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        clip_value(self.parameters())


class Checkpointed(Net):
    def forward(self, x):
        return self.head(checkpoint(self.body[2], self.body[:2](x), use_reentrant=False))


GRADIENTS = [
    Row("accumulation", Recipe(accumulate=lambda epoch: 2), trainer={"accumulate_grad_batches": 2}),
    Row("accumulation-schedule", Recipe(accumulate=lambda epoch: 1 + epoch),
        callbacks=lambda folder: [GradientAccumulationScheduler({0: 1, 1: 2})]),
    Row("clipping-by-norm", Recipe(clip=clip_norm), trainer={"gradient_clip_val": 0.05}),
    Row("clipping-by-value", Recipe(clip=clip_value),
        trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    Row("own-clipping", Recipe(clip=clip_value), OwnClipping),
    Row("gradient-checkpointing", net=Checkpointed),
    Row("precision-bf16-mixed", Recipe(autocast=torch.bfloat16), trainer={"precision": "bf16-mixed"}),
    Row("precision-64-true", Recipe(dtype=torch.float64), trainer={"precision": "64-true"}),
    Row("precision-bf16-true", Recipe(dtype=torch.bfloat16), trainer={"precision": "bf16-true"}),
]  # fmt: skip

# -- loops

LOOPS = [
    Row("limit-train-batches", Recipe(limit=2), trainer={"limit_train_batches": 2},
        examples={"north": 8, "south": 8}),
    Row("overfit-batches", Recipe(limit=2), trainer={"overfit_batches": 2},
        examples={"north": 8, "south": 8}),
    Row("validate-every-second-epoch", trainer={"check_val_every_n_epoch": 2}),
    Row("validate-within-an-epoch", trainer={"val_check_interval": 0.5}),
    Row("no-validation", trainer={"limit_val_batches": 0}),
    Row("sanity-check", trainer={"num_sanity_val_steps": -1}),
    Row("reload-loaders", trainer={"reload_dataloaders_every_n_epochs": 1}),
    Row("deterministic", trainer={"deterministic": "warn"}),
]  # fmt: skip

# -- callbacks and loggers


class Thaw(BaseFinetuning):
    """Freezes the first layer until the second epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.body[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.body[0], optimizer, lr=RATE / 10)


def only_trained(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE, momentum=0.9)


def thaw(site: Site, epoch: int) -> None:
    if epoch == 0:
        site.model.body[0].requires_grad_(False)
    if epoch == 1:
        site.model.body[0].requires_grad_(True)
        group = {"params": list(site.model.body[0].parameters()), "lr": RATE / 10}
        site.optimiser.add_param_group(group)
    plain_train(site, epoch)


class FrozenFirst(Net):
    def __init__(self, recipe):
        super().__init__(recipe)
        self.body[0].requires_grad_(False)


CALLBACKS = [
    Row("model-checkpoint", callbacks=lambda folder: [ModelCheckpoint(folder, monitor="val/loss")],
        trainer={"enable_checkpointing": True}),
    Row("early-stopping", callbacks=lambda folder: [EarlyStopping("val/loss", patience=9)]),
    Row("moving-average", callbacks=lambda folder: [EMAWeightAveraging()], ends_merged=False),
    Row("stochastic-weight-averaging", ends_merged=False,
        callbacks=lambda folder: [StochasticWeightAveraging(RATE, swa_epoch_start=1)]),
    Row("fine-tuning", Recipe(optimiser=only_trained), FrozenFirst, plain=thaw,
        callbacks=lambda folder: [Thaw()]),
    Row("fine-tuning-trained-only", Recipe(optimiser=only_trained), FrozenFirst,
        callbacks=lambda folder: [Thaw()], federated={"trained_only": True},
        refused=r"frozen or unfrozen since: body.0.bias, body.0.weight"),
    Row("learning-rate-monitor", callbacks=lambda folder: [LearningRateMonitor()], logger=CSVLogger),
    Row("timer", callbacks=lambda folder: [Timer("00:01:00:00")]),
    Row("lambda-callback", callbacks=lambda folder: [LambdaCallback(on_train_epoch_end=lambda *of: None)]),
    Row("progress-bar-and-summary", trainer={"enable_progress_bar": True, "enable_model_summary": True}),
    Row("csv-logger", logger=CSVLogger, trainer={"log_every_n_steps": 1}),
]  # fmt: skip

# -- data


class Stream(IterableDataset):
    def __init__(self, site):
        self.rows = rows(site)

    def __iter__(self):
        return (self.rows[number] for number in range(len(self.rows)))


class Order(Sampler[int]):
    """An order of its own in each epoch, which Lightning tells it by `set_epoch`."""

    def __init__(self, count):
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(torch.randperm(self.count, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def shuffled(site):
    return loader(site, sampler=Order(SITES[site]))


def reshuffled(site: Site, epoch: int) -> None:
    site.data.sampler.set_epoch(epoch)
    plain_train(site, epoch)


def half(site):
    return loader(
        site, sampler=SubsetRandomSampler(range(SITES[site] // 2), torch.Generator().manual_seed(7))
    )


def weighted(site):
    chances = [0.0] * 4 + [1.0] * (SITES[site] - 4)
    return loader(
        site, sampler=WeightedRandomSampler(chances, 30, generator=torch.Generator().manual_seed(7))
    )


def batch_sampled(site):
    return DataLoader(rows(site), batch_sampler=BatchSampler(SequentialSampler(rows(site)), 3, False))


class Keyed(Net):
    """Trains on the batches of two loaders together."""

    def training_step(self, batch, index):
        parts = batch.values() if isinstance(batch, dict) else batch
        return sum(entropy(self, part) for part in parts)


def keyed(site: Site, batch) -> Any:
    return sum(entropy(site, part) for part in batch)


class Twice:
    """Pairs each batch of one loader with one of another, which begins again at its end."""

    def __init__(self, site, shortest=False):
        self.first, self.second, self.shortest = loader(site), loader("val"), shortest

    def __iter__(self):
        long, short = sorted([list(self.first), list(self.second)], key=len, reverse=True)
        count = len(short) if self.shortest else len(long)
        return ((long[k], short[k % len(short)]) for k in range(count))


PAIR = Recipe(loss=keyed)
BOTH = {site: count + 10 for site, count in SITES.items()}


class Data(pl.LightningDataModule):
    def __init__(self, site):
        super().__init__()
        self.site = site

    def train_dataloader(self):
        return loader(self.site)

    def val_dataloader(self):
        return loader("val")


def fit_data_module(trainer, module, data, held_out) -> None:
    trainer.fit(module, datamodule=data)


class Fetches(Net):
    """Asks for its batches itself."""

    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return entropy(self, batch)


def patches(row):
    features, label = row
    return [(features + shift, label) for shift in (0.0, 0.5)]


def patched(site):
    return DataLoader(PatchDataset(rows(site), patches, samples_per_image=2), BATCH)


def joined(samples):
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


class Joining(Net):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return joined(batch) if isinstance(batch[0], tuple) else batch


class Skipping(Net):
    """Leaves the first batch of every epoch out, and returns a dictionary."""

    def training_step(self, batch, index):
        return {"loss": entropy(self, batch), "more": 1} if index else None


def skipping(site: Site, epoch: int) -> None:
    whole, site.data = site.data, list(site.data)[1:]
    plain_train(site, epoch)
    site.data = whole


class Short(Net):
    def training_step(self, batch):
        return entropy(self, batch)


class Looks(Net):
    def validation_step(self, batch, index, dataloader_idx=0):
        self.log("val/loss", entropy(self, batch))


def fit_two_held_out(trainer, module, data, held_out) -> None:
    trainer.fit(module, data, [held_out, held_out])


DATA = [
    Row("shuffled-loader", data=shuffled, plain=reshuffled),
    Row("last-batch-dropped", data=lambda site: DataLoader(rows(site), 5, drop_last=True),
        examples={"north": 10, "south": 20}),
    Row("subset-sampler", data=half, examples={"north": 6, "south": 10}),
    Row("weighted-sampler", data=weighted, examples={"north": 8, "south": 16}),
    Row("batch-sampler", data=batch_sampled),
    Row("iterable-dataset", data=lambda site: DataLoader(Stream(site), BATCH)),
    Row("worker-processes", data=lambda site: loader(site, num_workers=1)),
    Row("dict-of-loaders", PAIR, Keyed, lambda site: {"a": loader(site), "b": loader("val")},
        plain_data=Twice, examples=BOTH),
    Row("list-of-loaders", PAIR, Keyed, lambda site: [loader(site), loader("val")], plain_data=Twice,
        examples=BOTH),
    Row("combined-loader", PAIR, Keyed,
        lambda site: CombinedLoader([loader(site), loader("val")], "min_size"),
        plain_data=lambda site: Twice(site, shortest=True), examples={"north": 22, "south": 22}),
    Row("data-module", data=Data, fit=fit_data_module, plain_data=loader),
    Row("patch-dataset", data=patched),
    Row("samples-not-collated", net=Joining, data=lambda site: loader(site, collate_fn=list),
        plain_data=loader),
    Row("step-fetches-batches", net=Fetches),
    Row("step-skips-a-batch", net=Skipping, plain=skipping),
    Row("step-without-index", net=Short),
    Row("several-validation-loaders", net=Looks, fit=fit_two_held_out),
]  # fmt: skip

# -- modules


class Configured(Net):
    """Makes its layers where the Trainer asks for them."""

    def __init__(self, recipe):
        pl.LightningModule.__init__(self)
        self.recipe, self.body = recipe, None

    def configure_model(self):
        if self.body is None:
            torch.manual_seed(1)
            self.body, self.head = body(), nn.Linear(6, 2)


def configured(make):
    module = make()
    module.configure_model()
    return module


class Lazy(Net):
    def __init__(self, recipe):
        super().__init__(recipe, body=nn.Sequential(nn.LazyLinear(6), nn.ReLU()))


def materialised(recipe):
    module = Lazy(recipe)
    module(torch.zeros(1, 4))
    return module


class Tied(Net):
    def __init__(self, recipe):
        super().__init__(recipe, body=nn.Sequential(nn.Linear(4, 6), nn.ReLU()), again=nn.Linear(6, 2))
        self.again.weight = self.head.weight

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden) + self.again(hidden)


class Spectral(Net):
    """Filters features in the frequency domain by complex numbers that it learns."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.filter = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x):
        return super().forward(torch.fft.ifft(torch.fft.fft(x) * self.filter).real)


class Extra(Net):
    """Holds what can't be averaged: integers, an extra state, an empty and a float8 buffer, one not saved."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("small", torch.zeros(2, dtype=torch.float8_e4m3fn))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)

    def get_extra_state(self):
        return {"calls": int(self.count)}

    def set_extra_state(self, state):
        pass


class Tiny(Net):
    def __init__(self, recipe):
        super().__init__(recipe)
        self.tiny = nn.Parameter(torch.zeros(2).to(torch.float8_e4m3fn))


class Halves(Net):
    def __init__(self, recipe):
        super().__init__(recipe)
        self.body = torch.compile(self.body, backend="eager")


def fit_compiled(trainer, module, data, held_out) -> None:
    trainer.fit(torch.compile(module, backend="eager"), data, held_out)


class Dropping(Net):
    """Drops features at random, by a seed of its own for each epoch."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 0:
            torch.manual_seed(self.current_epoch)


def dropping(site: Site, epoch: int) -> None:
    site.data = list(site.data)  # a loader draws a number, too
    torch.manual_seed(epoch)
    plain_train(site, epoch)


class Parametrised(Net):
    def __init__(self, recipe):
        super().__init__(recipe)
        nn.utils.parametrizations.weight_norm(self.head)


class Sparse(Net):
    def __init__(self, recipe):
        super().__init__(recipe, body=nn.EmbeddingBag(2, 6, sparse=True))

    def forward(self, x):
        return self.head(self.body((x > 0).long()))


def fit_twice(trainer, module, data, held_out) -> None:
    """Freeze the body, fit one round, unfreeze it, and fit the other by the same callback."""
    federated = next(one for one in trainer.callbacks if isinstance(one, FederatedCallback))
    module.body.requires_grad_(False)
    trainer_of(1, [federated]).fit(module, data, held_out)
    module.body.requires_grad_(True)
    trainer_of(1, [federated]).fit(module, data, held_out)
    federated.close()


def frozen_then_all(site: Site, epoch: int) -> None:
    site.model.body.requires_grad_(epoch == 1)
    site.optimiser = sgd(site.model)
    plain_train(site, epoch)


MODULES = [
    Row("configure-model", net=Configured, start=configured),
    Row("lazy-layers-after-a-forward", net=materialised),
    Row("lazy-layers", net=Lazy, start=lambda make: materialised(Recipe()), refused="has no values yet"),
    Row("tied-weights", net=Tied),
    Row("complex-parameters", net=Spectral),
    Row("parametrisations", net=Parametrised),
    Row("sparse-gradients", Recipe(optimiser=lambda m: torch.optim.SGD(m.parameters(), RATE)), Sparse),
    Row("dropout", net=Dropping, plain=dropping),
    Row("what-cannot-be-averaged", net=Extra, shared=lambda name: name != "small"),
    Row("float8-parameters", net=Tiny, start=lambda make: Net(),
        refused="'tiny' of Tiny trains and can't be"),
    Row("keep-local-norm", federated={"keep_local": ["norm"]}, shared=lambda name: "body.1." not in name),
    Row("trained-only", Recipe(optimiser=only_trained), FrozenFirst, federated={"trained_only": True},
        shared=lambda name: "body.0." not in name),
    Row("fit-twice", fit=fit_twice, plain=frozen_then_all, federated={"close_at_end": False}),
    Row("compiled-module", fit=fit_compiled, slow=True),
    Row("compiled-submodule", net=Halves, slow=True),
]  # fmt: skip

ALL = [*OPTIMISATION, *SCHEDULES, *GRADIENTS, *LOOPS, *CALLBACKS, *DATA, *MODULES]


def trainer_of(epochs: int, callbacks: list, **settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    return pl.Trainer(max_epochs=epochs, callbacks=callbacks, **{**quiet, **settings})


def federate(row: Row, folder: Path):
    """Return the final model and the modules of a row's sites."""
    own = {key: row.federated[key] for key in ("trained_only", "close_at_end") if key in row.federated}
    settings = {key: value for key, value in row.federated.items() if key not in own}
    modules = {site: row.make() for site in SITES}

    def site(name: str):
        def work(exchange):
            federated = FederatedCallback(name, exchange, options=CallbackOptions(**own), **settings)
            callbacks = [*row.callbacks(folder / name), federated]
            trainer = trainer_of(ROUNDS, callbacks, logger=row.logger(folder / name), **row.trainer)
            row.fit(trainer, modules[name], row.data(name), loader("val"))

        return work

    start = weights_of(
        row.start(row.make), settings.get("keep_local", ()), trained_only=own.get("trained_only", False)
    )
    final = simulated(
        {name: site(name) for name in SITES}, start, rule=FedAvg(), rounds=ROUNDS, minimum=len(SITES)
    )
    return final, modules


CASES = [pytest.param(row, id=row.id, marks=[pytest.mark.slow] if row.slow else []) for row in ALL]


@pytest.mark.parametrize("row", CASES)
def test_a_feature_federates_as_plain_fedavg(row: Row, tmp_path: Path) -> None:
    if row.refused:
        with pytest.raises(QuorumError) as caught:
            federate(row, tmp_path)
        assert isinstance(caught.value.__cause__, StudyError)
        assert re.search(row.refused, str(caught.value.__cause__))
        return
    final, modules = federate(row, tmp_path)
    expected, sites = plain_fedavg(
        lambda: row.start(row.make), row.recipe, row.plain_data or row.data, examples=row.examples,
        train=row.plain, shared=row.shared, after_merge=row.after_merge,
    )  # fmt: skip
    exact = row.recipe.dtype is not torch.bfloat16 and row.recipe.autocast is None
    near = {"rtol": 1e-5, "atol": 1e-6} if exact else {"rtol": 2e-2, "atol": 2e-2}
    assert final.weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(final.weights[name], as_real(tensor.detach()), **near)
    for site, module in modules.items() if row.ends_merged else ():
        for name, tensor in tensors(sites[site].model).items():
            if name in tensors(module):
                own = tensors(module)[name].detach()
                torch.testing.assert_close(wide(own), wide(tensor.to(own.dtype)), **near)


def test_the_page_has_a_line_for_each_row():
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed == [row.id for row in ALL]
    assert len(listed) >= 60
