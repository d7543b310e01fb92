"""One hospital: its cases, a LightningModule, a Trainer and the callbacks that make it a
site of a federation.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medfed.errors import PrivacyError, RunError
from medfed.exchange import SiteSide
from medfed.federation.callback import FederatedCallback, seed_epoch
from medfed.federation.egress import Egress
from medfed.federation.private_training import PrivateData, PrivateTraining
from medfed.federation.round import receive
from medfed.local_training import LocalMethod
from medfed.local_training.fine_tune import FineTune
from medfed.privacy import NoPrivacy, Privacy
from medfed.privacy.accounting.accountant import Accountant
from medfed.privacy.accounting.ledger import DELTA, BudgetTracker, DataSet, Ledger
from medfed.privacy.dp_sgd import DPSGD
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression
from medfed.wire.update import GlobalModel, finite_scalars
from medfed.wire.weights import Weights, load, local_names, weights_of

# The checkpoint from which a site's training goes on after it was stopped.
RESUME = "last.ckpt"
# The model that a site began with, until its first checkpoint.
FIRST = "first.safetensors"
# The model that this hospital made its own, whole, and the tensors that `keep_local` kept; neither
# is ever sent.
PERSONAL = "personal.safetensors"
KEPT = "kept.safetensors"


@dataclass(frozen=True)
class Training:
    """How a site trains: the parts of a study that its Trainer and callback need.

    `epochs` are those of the whole run, `local_epochs` those between two merges. `batch` is how many patients
    a step of private training holds on average.
    """

    epochs: int
    local_epochs: int = 1
    batch: int = 1
    precision: Literal[32, "16-mixed", "bf16-mixed"] = 32
    clip: float | None = None
    accumulate: int = 1
    keep_local: tuple[str, ...] = ()
    trained_only: bool = False
    optimiser_state: Literal["keep", "reset"] = "keep"
    local: LocalMethod | None = None
    privacy: Privacy = field(default_factory=NoPrivacy)
    egress: Egress | None = None
    compress: tuple[Compression, ...] = ()
    seed: int = 0
    accelerator: str = "auto"
    devices: int | str = 1
    needs: tuple[str, ...] = ()


def train_site(
    name: str,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    exchange: SiteSide,
    training: Training,
    *,
    folder: Path,
    examples: int | None = None,
    audit: AuditLog | None = None,
    callbacks: Sequence[pl.Callback] = (),
    logger: bool = True,
    resume: bool = False,
    study: str = "",
    ledger: Ledger | None = None,
    dataset: DataSet | None = None,
    items: Sequence[Sequence[int]] = (),
    say: Callable[[str], None] = lambda text: None,
    closing: Callable[[GlobalModel], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Train one site through a whole study and return its scores of the final model.

    What a resumed run needs is kept in `folder`; TensorBoard logs go there too. Under differential privacy,
    what the `study` (its digest) costs the patients of `dataset` is written into `ledger`, one in `folder` if
    none is given; `items` are the numbers of each patient's training items; `say` hears what a person should
    know of it. `closing` is given the final model and returns what else this site reports of it. Where the
    local method or `keep_local` makes the hospital a model of its own, that is kept in `folder` as PERSONAL
    and its scores are told as `val/personal/...`.

    Raises:
        PrivacyError: if the ledger has no room for this study, before the first step.
    """
    privacy = training.privacy
    costs = privacy.trains_privately or privacy.round_cost() is not None
    spending = _spending(privacy, ledger or Ledger(folder), study, dataset, resume) if costs else None
    private: PrivateTraining | None = None
    fitted: Any = data
    if isinstance(privacy, DPSGD):
        assert spending is not None
        fitted = PrivateData(data, items, training.batch)
        private = PrivateTraining(name, privacy, fitted, spending, say=say)
        callbacks = [*callbacks, private]
    federated = FederatedCallback(
        name,
        exchange,
        training.local_epochs,
        examples=examples,
        keep_local=training.keep_local,
        trained_only=training.trained_only,
        optimiser_state=training.optimiser_state,
        local=training.local,
        privacy=training.privacy,
        compress=training.compress,
        # Private training draws from the operating system what is otherwise drawn from the study's seed.
        seed=None if private is not None else training.seed,
        audit=audit,
        egress=training.egress,
        spends=spending.commit_round if spending is not None else None,
        closing=closing,
        needs=training.needs,
        close_at_end=False,
    )
    if spending is not None and private is None:
        callbacks = [*callbacks, _Charges(name, privacy, spending, training)]
    checkpoint = folder / RESUME
    first = folder / FIRST
    if resume and not checkpoint.exists() and first.exists():
        # It died in its first round: it trains that again from the model it began with, wherever the hub
        # is by now.
        federated.begin_again(int(_began(first, module)))
    elif not resume:
        first.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    resume = resume and (checkpoint.exists() or first.exists())
    trainer = trainer_of(
        training, folder, [*callbacks, federated, _Keep(checkpoint, federated, training.local_epochs)], logger
    )
    received = receive(exchange, name, 0, audit or AuditLog(None), training.privacy)
    if received.final or not resume:
        # The untrained model's scores begin a curve; those of a study that ended while this site was
        # down end it.
        federated.scores = _scores(trainer, module, data, received.weights)
    if received.final:
        if resume and checkpoint.exists() and not (folder / PERSONAL).exists():
            # The study ended while this site was down: what it had made its own by then is kept, and
            # told of, now.
            federated.recall(module, received, torch.load(checkpoint, map_location="cpu", weights_only=True))
            federated.scores |= personalise(name, module, data, training, federated, folder)
        federated.close(received)
        return federated.scores
    trainer.fit(module, datamodule=fitted, ckpt_path=checkpoint if resume and checkpoint.exists() else None)
    federated.scores |= personalise(name, module, data, training, federated, folder)
    if trainer.is_global_zero:
        federated.close()
    return federated.scores


def personalise(
    name: str,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    training: Training,
    federated: FederatedCallback,
    folder: Path,
) -> dict[str, float]:
    """Keep the hospital's own model, where the study makes it one, and return
    its scores as `val/personal/...`.
    """
    shared, keeps = weights_of(module), training.keep_local
    own = federated.personal(module)
    if keeps:
        _write(folder / KEPT, {key: shared[key] for key in local_names(module, keeps) if key in shared})
    if isinstance(training.local, FineTune):
        own = _tuned(name, module, data, training, training.local, folder)
    elif own is None and (keeps or (training.local is not None and training.local.module_is_personal)):
        own = shared
    if own is None:
        return {}
    scores = _scores(trainer_of(training, folder, [], False), module, data, own)
    load(module, shared)
    _write(folder / PERSONAL, own)
    return {
        f"val/personal/{key.removeprefix('val/')}": value
        for key, value in scores.items()
        if key.startswith("val/")
    }


def _write(path: Path, weights: Weights) -> None:
    aside = path.with_suffix(".writing")
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, aside)
    aside.replace(path)


def _tuned(
    name: str,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    training: Training,
    tuning: FineTune,
    folder: Path,
) -> Weights:
    """Return the final model trained on at this hospital; the module holds the final model again afterwards."""
    shared = weights_of(module)
    shorter = replace(training, epochs=tuning.epochs, local_epochs=1, local=None)
    callbacks = [_Seeded(f"{name}/fine-tuning", training.seed), _Rate(tuning.rate)]
    trainer_of(shorter, folder, callbacks, False, validate=False).fit(module, datamodule=data)
    own = weights_of(module)
    load(module, shared)
    return own


def train_alone(
    name: str,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    training: Training,
    *,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train a site's own model on its own cases only, with the same budget of epochs, optimiser and seeds."""
    seeded = _Seeded(name, training.seed)
    trainer = trainer_of(training, folder, [*callbacks, seeded], logger=False, validate=False)
    trainer.fit(module, datamodule=data)


def trainer_of(
    training: Training,
    folder: Path,
    callbacks: list[pl.Callback],
    logger: bool = False,
    validate: bool = True,
) -> pl.Trainer:
    """Return the Trainer of a site; validation runs where a merge is, on the merged weights."""
    loggers: Any = False
    if logger:
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers = TensorBoardLogger(save_dir=folder, name="", version="tensorboard")
    return pl.Trainer(
        max_epochs=training.epochs,
        check_val_every_n_epoch=training.local_epochs,
        limit_val_batches=None if validate else 0,
        precision=training.precision,
        gradient_clip_val=training.clip,
        accumulate_grad_batches=training.accumulate,
        callbacks=callbacks,
        logger=loggers,
        accelerator=training.accelerator,
        devices=training.devices,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _scores(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, weights: Weights
) -> dict[str, float]:
    """Return the validation scores of a model."""
    load(module, weights)
    found = trainer.validate(module, datamodule=data, verbose=False)
    return finite_scalars({key: float(value) for key, value in (found[0] if found else {}).items()})


def _began(first: Path, module: pl.LightningModule) -> str:
    """Put the model that a site began with back, and return its round."""
    with safe_open(first, framework="pt") as file:
        load(module, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
        return file.metadata()["round"]


class _Keep(pl.Callback):
    """Keeps one checkpoint a site, replaced whole after every merge, from which training goes on bit for bit."""

    def __init__(self, path: Path, federated: FederatedCallback, local_epochs: int) -> None:
        self._path, self._federated, self._local_epochs = path, federated, local_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self._path.exists():
            first = self._path.with_name(FIRST)
            aside = first.with_suffix(".writing")
            first.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights_of(pl_module), aside, metadata={"round": str(self._federated.round)})
            aside.replace(first)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self._local_epochs == 0:
            aside = self._path.with_suffix(".writing")
            try:
                trainer.save_checkpoint(aside, weights_only=False)
            except (OSError, RuntimeError) as error:  # torch's writer calls a full disk a RuntimeError
                aside.unlink(missing_ok=True)
                room = shutil.disk_usage(aside.parent).free
                raise RunError(
                    f"this site's checkpoint could not be written ({type(error).__name__}, {room / 1e6:.0f} MB are free where "
                    f"the run folder is); make room and start it again: it goes on from the last round"
                ) from None
            if trainer.is_global_zero:
                aside.replace(self._path)


def _spending(
    privacy: Privacy, ledger: Ledger, study: str, dataset: DataSet | None, resume: bool
) -> BudgetTracker:
    """Return what counts a differentially private run's costs."""
    if dataset is None:
        raise PrivacyError(
            "differential privacy keeps a ledger for each patient; give train_site(dataset=data_set(patients, secret))"
        )
    delta = getattr(privacy, "delta", DELTA)
    accountant: Accountant = getattr(privacy, "accountant", "prv")
    return BudgetTracker(ledger, study, dataset, delta=delta, accountant=accountant, resumed=resume)


class _Charges(pl.Callback):
    """Counts one charge of the privacy mechanism a round, where the noise is on the whole update."""

    def __init__(self, name: str, privacy: Privacy, spending: BudgetTracker, training: Training) -> None:
        self._name, self._privacy, self._spending = name, privacy, spending
        self._local_epochs = training.local_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rounds = ((trainer.max_epochs or 0) - trainer.current_epoch) // self._local_epochs
        charge = self._privacy.round_cost()
        if charge is not None and rounds:
            try:
                self._spending.begin(replace(charge, steps=charge.steps * rounds))
            except PrivacyError as error:
                raise PrivacyError(f"site '{self._name}': {error}") from None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        charge = self._privacy.round_cost()
        if (
            charge is not None
            and trainer.is_last_batch
            and (trainer.current_epoch + 1) % self._local_epochs == 0
        ):
            self._spending.add(charge)  # before the federated callback, whose turn comes after, merges

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._spending.end()


class _Seeded(pl.Callback):
    """Seeds each epoch as the federation does, so that a site's own model differs by the federation alone."""

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seed_epoch(trainer, self._seed, self._name)


class _Rate(pl.Callback):
    """Holds the learning rate at a share of the study's first one, whatever its schedule says."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._rates: list[list[float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rates = [
            [group.get("initial_lr", group["lr"]) * self._share for group in optimiser.param_groups]
            for optimiser in trainer.optimizers
        ]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for optimiser, rates in zip(trainer.optimizers, self._rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate
