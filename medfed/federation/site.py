"""One hospital's training: its cases, a LightningModule, and a Trainer with the federated callback."""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from safetensors.torch import save_file

from medfed.errors import LedgerError, PrivacyError, RunError
from medfed.exchange import SiteSide
from medfed.federation.acceptance import trains_on_all
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import CallbackOptions, SiteConfig
from medfed.federation.first_model import load_first_model, save_first_model
from medfed.federation.growing_alone import GrowsAlone
from medfed.federation.last_rounds import examples_in, last_rounds
from medfed.federation.private_training import PrivateData, PrivateTraining
from medfed.federation.round import SiteConnection, receive
from medfed.federation.training_seed import SeededEpochs
from medfed.files import PRIVATE_FILE, UNFINISHED, format_bytes, not_written, replacing
from medfed.local_training.fine_tune import FineTune
from medfed.privacy import Privacy
from medfed.privacy.accounting.ledger import DELTA, BudgetTracker, DataSet, Ledger
from medfed.privacy.dp_sgd import DPSGD
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import GlobalModel, finite_scalars
from medfed.wire.weights import Weights, as_real, load, local_names, weights_of

# The checkpoint from which a site's training resumes.
CHECKPOINT = "last.ckpt"
# The model that a site began with, until its first checkpoint.
INITIAL = "first.safetensors"
# The personalised model, whole, and the tensors named by `keep_local`; neither is ever sent.
PERSONAL = "personal.safetensors"
LOCAL = "kept.safetensors"


@dataclass(frozen=True)
class ChargedPatients:
    """The patients whose privacy spending a run records, and the ledger that records it.

    dataset: the patients.  items: for each patient the numbers of their training items.
    ledger: where the costs are written; by default a ledger in the run's folder.
    """

    study_digest: str
    dataset: DataSet
    items: Sequence[Sequence[int]] = ()
    ledger: Ledger | None = None


@dataclass(frozen=True)
class SiteRun:
    """One site's run of a study: its files, and what is called on the way.

    folder: keeps what a resumed run needs, and TensorBoard's logs if `logger` is set.  loggers: Lightning's
    further ones.  resume: whether an earlier run there goes on.  examples: as in FederatedCallback.
    examples_on_all: likewise in rounds that train on validation cases, too.
    patients: required under differential privacy.  log: called with what a person should know.
    on_final_model, on_last_model, scalars: as in CallbackOptions; the second is called with the module.
    checkpoint_s: a checkpoint is also written inside a round, at the end of a local epoch, once the last one
    is so many seconds old; None writes them after merges only.
    """

    folder: Path
    resume: bool = False
    logger: bool = False
    loggers: Sequence[Any] = ()
    examples: int | None = None
    examples_on_all: int | None = None
    patients: ChargedPatients | None = None
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    callbacks: Sequence[pl.Callback] = ()
    log: Callable[[str], None] = lambda text: None
    on_final_model: Callable[[GlobalModel], Mapping[str, float]] | None = None
    on_last_model: Callable[[pl.LightningModule], Mapping[str, float]] | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    checkpoint_s: float | None = None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint from which training resumes."""
        return self.folder / CHECKPOINT

    @property
    def initial(self) -> Path:
        """The model that the run began with, until its first checkpoint."""
        return self.folder / INITIAL


def train_site(
    name: str,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    exchange: SiteSide,
    config: SiteConfig,
    run: SiteRun,
) -> dict[str, float]:
    """Train one site through a whole study and return its scores of the final model.

    If the local method or `keep_local` personalises the model, it is saved as PERSONAL in the run's folder,
    and its scores are reported as `val/personal/...`.

    Raises:
        PrivacyError: if the ledger has no room for this study, before the first step.
    """
    with log_ledger_refusals(run.audit, name):
        tracker = _budget_tracker(config.privacy, run)
        callbacks = [*run.callbacks]
        fitted: pl.LightningDataModule = data
        if isinstance(config.privacy, DPSGD):
            assert tracker is not None
            assert run.patients is not None
            copies = config.privacy.augmentations
            fitted = PrivateData(data, run.patients.items, config.batch, copies)
            callbacks.append(PrivateTraining(name, config.privacy, fitted, tracker, log=run.log))
        elif tracker is not None:
            callbacks.append(_RoundCharges(name, config, tracker))
        federated = _callback(name, exchange, config, run, tracker, module)
        resume = _resume(federated, module, run)
        callbacks += last_rounds(name, config, lambda _: federated.round + 1)
        saver = _CheckpointSaver(run, federated, config.local_epochs)
        trainer = trainer_of(config, run.folder, [*callbacks, federated, saver], run.logger, more=run.loggers)
        measure = partial(_scores, trainer, module, data)
        connection = SiteConnection(name, exchange, config.privacy, audit=run.audit, parties=config.parties)
        received = receive(connection, 0)
        if received.scoring:
            # Training ended while this site was down; the hub chooses the best model once it has all scores.
            federated.scores = measure(received.weights)
            received = federated.report_scores(received)
        if (received.final or not resume) and not trains_on_all(config.on_all_from, received.round):
            # The untrained model's scores begin a curve; those of a study that ended while this site was
            # down end it.
            federated.scores = measure(received.weights)
        if received.final:
            if resume and run.checkpoint.exists() and not (run.folder / PERSONAL).exists():
                # The study ended while this site was down: its personalised model is saved and reported now.
                saved = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
                federated.restore_final(module, received, saved)
                federated.scores |= personalise(module, data, config, federated, run.folder)
            federated.close(received)
            return federated.scores
        checkpoint = run.checkpoint if resume and run.checkpoint.exists() else None
        trainer.fit(module, datamodule=fitted, ckpt_path=checkpoint)
        if federated.chosen_before_last and config.on_all_from is None:
            federated.scores = measure(weights_of(module))
        federated.scores |= personalise(module, data, config, federated, run.folder)
        if trainer.is_global_zero:
            federated.close()
        return federated.scores


@contextmanager
def log_ledger_refusals(audit: AuditLog, site: str) -> Iterator[None]:
    """Write to the audit log why a hospital's privacy ledger stops it."""
    try:
        yield
    except LedgerError as error:
        audit.write("ledger refused", site=site, reason=str(error))
        raise


def _callback(
    name: str,
    exchange: SiteSide,
    config: SiteConfig,
    run: SiteRun,
    tracker: BudgetTracker | None,
    module: pl.LightningModule,
) -> FederatedCallback:
    return FederatedCallback(
        name,
        exchange,
        config.local_epochs,
        examples=run.examples,
        keep_local=config.keep_local,
        local=config.local,
        privacy=config.privacy,
        compress=config.compress,
        optimiser_state=config.optimiser_state,
        # Private training draws from the operating system what is otherwise drawn from the study's seed.
        seed=None if isinstance(config.privacy, DPSGD) else config.seed,
        options=CallbackOptions(
            trained_only=config.trained_only,
            egress=config.egress,
            audit=run.audit,
            accountant=tracker.commit_round if tracker is not None else None,
            on_final_model=run.on_final_model,
            on_last_model=None if run.on_last_model is None else partial(run.on_last_model, module),
            scalars=run.scalars,
            required_scalars=config.required_scalars,
            parties=config.parties,
            close_at_end=False,
            examples_in=examples_in(config.on_all_from, run.examples, run.examples_on_all),
        ),
    )


def _resume(federated: FederatedCallback, module: pl.LightningModule, run: SiteRun) -> bool:
    """Prepare the callback to go on from an earlier run, and return whether there is one."""
    if not run.resume:
        run.initial.unlink(missing_ok=True)
        run.checkpoint.unlink(missing_ok=True)
        return False
    if not run.checkpoint.exists() and run.initial.exists():
        # It died in its first round: it trains that round again from the model it began with, whatever
        # round the hub is in by now.
        federated.resume_from_round(*_load_initial(run.initial, module, federated.site))
    if run.checkpoint.exists():
        _require_intact(run, federated.site)
    return run.checkpoint.exists() or run.initial.exists()


def _require_intact(run: SiteRun, site: str) -> None:
    """Refuse a checkpoint with other bytes than were written: torch reads a changed number as it stands.

    Raises:
        RunError: naming what to do.
    """
    try:
        with zipfile.ZipFile(run.checkpoint) as file:
            whole = file.testzip() is None  # compares each tensor's bytes with its CRC-32
    except (zipfile.BadZipFile, OSError):
        whole = False
    if not whole:
        raise RunError(
            f"site '{site}': its checkpoint {run.checkpoint.name} is damaged; restore it from a back-up of "
            f"the run folder, or delete it and {run.initial.name}: the site then goes on from the hub's "
            "newest model, with a new optimiser"
        )


def personalise(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    config: SiteConfig,
    federated: FederatedCallback,
    folder: Path,
) -> dict[str, float]:
    """Save the hospital's own model if the study makes one, and return its scores as `val/personal/...`."""
    shared, keep_local = weights_of(module), config.keep_local
    own = federated.personalised_weights(module)
    if keep_local:
        _save(folder / LOCAL, {key: shared[key] for key in local_names(module, keep_local) if key in shared})
    if isinstance(config.local, FineTune):
        own = _fine_tuned(federated.site, module, data, config, folder)
    elif own is None and (keep_local or (config.local is not None and config.local.module_is_personal)):
        own = shared
    if own is None:
        return {}
    trained_on_all, trainer = config.on_all_from is not None, trainer_of(config, folder, [], False)
    scores = {} if trained_on_all else _scores(trainer, module, data, own)
    load(module, shared)
    _save(folder / PERSONAL, own)
    return {
        f"val/personal/{key.removeprefix('val/')}": value
        for key, value in scores.items()
        if key.startswith("val/")
    }


def _save(path: Path, weights: Weights, metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as unfinished:
        save_file(
            {key: as_real(tensor).contiguous() for key, tensor in weights.items()}, unfinished, metadata
        )


def _fine_tuned(
    name: str, module: pl.LightningModule, data: pl.LightningDataModule, config: SiteConfig, folder: Path
) -> Weights:
    """Return the final model fine-tuned at this hospital, and leave the module as it was."""
    assert isinstance(config.local, FineTune)
    shared = weights_of(module)
    shorter = replace(config, epochs=config.local.epochs, local_epochs=1, local=None)
    seeded, constant = SeededEpochs(f"{name}/fine-tuning", config.seed), _ConstantRate(config.local.rate)
    on_all = last_rounds(name, replace(shorter, on_all_from=1 if config.on_all_from else None))
    trainer_of(shorter, folder, [*on_all, seeded, constant], validate=False).fit(module, datamodule=data)
    own = weights_of(module)
    load(module, shared)
    return own


def train_alone(
    name: str,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    config: SiteConfig,
    *,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train a site's own model on its own cases only, with the same epochs, optimiser and seeds."""
    own: list[pl.Callback] = [*callbacks, *last_rounds(name, config), SeededEpochs(name, config.seed)]
    if config.grows_alone is not None:
        own.append(GrowsAlone(name, config.grows_alone))
    trainer = trainer_of(config, folder, own, logger=False, validate=False)
    trainer.fit(module, datamodule=data)


def trainer_of(
    config: SiteConfig,
    folder: Path,
    callbacks: list[pl.Callback],
    logger: bool = False,
    validate: bool = True,
    more: Sequence[Any] = (),
) -> pl.Trainer:
    """Return the Trainer of a site; validation runs where a merge is, on the merged weights."""
    loggers: list[Any] = [*more]
    if logger:
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.insert(0, TensorBoardLogger(save_dir=folder, name="", version="tensorboard"))
    return pl.Trainer(
        max_epochs=config.epochs,
        check_val_every_n_epoch=config.local_epochs,
        limit_val_batches=None if validate else 0,
        precision=config.precision,
        gradient_clip_val=config.clip,
        accumulate_grad_batches=config.accumulate,
        callbacks=callbacks,
        logger=loggers or False,
        accelerator=config.accelerator,
        devices=config.devices,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=_plugins(),
    )


def _plugins() -> list[Any]:
    """Keep Lightning from requeueing a Slurm job: it would resume in the middle of a round that was merged.

    medfed ends with the exit code by which the job is requeued, and resumes from the last merged round.
    """
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _scores(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, weights: Weights
) -> dict[str, float]:
    """Return the validation scores of a model."""
    load(module, weights)
    results = trainer.validate(module, datamodule=data, verbose=False)
    return finite_scalars({key: float(value) for key, value in (results[0] if results else {}).items()})


def _load_initial(initial: Path, module: pl.LightningModule, site: str) -> tuple[int, str, str | None]:
    """Load the model that a site began with; return its round, its digest on arrival and the secret seed."""
    weights, metadata = load_first_model(initial, site)
    load(module, weights)
    return int(metadata["round"]), metadata["model"], metadata.get("seed")


class _CheckpointSaver(pl.Callback):
    """Saves one checkpoint per site, replaced after every merge, from which training resumes bit for bit.

    With `SiteRun.checkpoint_s` it is also replaced inside a round, at the end of a local epoch and never
    within one: what a loader's workers have drawn ahead, and from which random states, nobody can save.
    """

    def __init__(self, run: SiteRun, federated: FederatedCallback, local_epochs: int) -> None:
        self._run, self._federated, self._local_epochs = run, federated, local_epochs
        self._saved_s = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_s = time.monotonic()
        self._tell_where(trainer)
        if trainer.is_global_zero and not self._run.checkpoint.exists():
            metadata = {"round": str(self._federated.round), "model": self._federated.model_sha256}
            if (secret := self._federated.secret_seed) is not None:
                metadata["seed"] = secret
            save_first_model(self._run.initial, weights_of(pl_module), metadata)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self._local_epochs == 0 or self._is_due(trainer):
            # Every rank takes part in making a checkpoint; only the first writes it and renames it.
            path = self._run.checkpoint
            unfinished = path.with_suffix(UNFINISHED)
            try:
                trainer.save_checkpoint(unfinished, weights_only=False)
            except (OSError, RuntimeError) as error:  # torch's writer calls a full disk a RuntimeError
                unfinished.unlink(missing_ok=True)
                free = format_bytes(shutil.disk_usage(path.parent).free)
                raise not_written(
                    f"this site's checkpoint could not be written ({type(error).__name__}, {free} are free "
                    "in the run folder)",
                    error,
                    "start the site again: it goes on from the last one",
                ) from None
            if trainer.is_global_zero:
                # Lightning writes through fsspec, which sets the first umask that it ever saw.
                unfinished.chmod(PRIVATE_FILE)
                unfinished.replace(path)
            self._saved_s = time.monotonic()

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Return whether the last checkpoint is old enough; all processes of a site get the same answer."""
        if self._run.checkpoint_s is None:
            return False
        due = time.monotonic() - self._saved_s >= self._run.checkpoint_s
        return trainer.strategy.broadcast(due) if trainer.world_size > 1 else due

    def _tell_where(self, trainer: pl.Trainer) -> None:
        """Log in which round, and where in it, a site goes on that was started again."""
        if not self._run.resume or not (self._run.checkpoint.exists() or self._run.initial.exists()):
            return
        done, all_epochs = trainer.current_epoch % self._local_epochs, self._local_epochs
        where = f"after {done} of its {all_epochs} local epochs" if done else "from its beginning"
        self._run.log(f"site '{self._federated.site}' goes on in round {self._federated.round + 1}, {where}")


def _budget_tracker(privacy: Privacy, run: SiteRun) -> BudgetTracker | None:
    """Return what counts a differentially private run's costs, or None if the run is not private."""
    if not privacy.trains_privately and privacy.round_cost() is None:
        return None
    if run.patients is None:
        raise PrivacyError(
            "differential privacy keeps a ledger for each patient; give "
            "SiteRun(patients=ChargedPatients(study_digest, data_set(patients, secret)))"
        )
    patients = run.patients
    return BudgetTracker(
        patients.ledger or Ledger(run.folder),
        patients.study_digest,
        patients.dataset,
        delta=getattr(privacy, "delta", DELTA),
        accountant=getattr(privacy, "accountant", "prv"),
        resumed=run.resume,
    )


class _RoundCharges(pl.Callback):
    """Charges the ledger once per round, for a privacy mechanism that adds noise to the whole update."""

    def __init__(self, name: str, config: SiteConfig, tracker: BudgetTracker) -> None:
        self._name, self._privacy, self._tracker = name, config.privacy, tracker
        self._local_epochs = config.local_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Rounded up: a site that goes on inside a round has a part of it left.
        rounds = -((trainer.current_epoch - (trainer.max_epochs or 0)) // self._local_epochs)
        charge = self._privacy.round_cost()
        if charge is not None and rounds:
            try:
                self._tracker.begin(replace(charge, steps=charge.steps * rounds))
            except PrivacyError as error:
                raise PrivacyError(f"site '{self._name}': {error}") from None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        merges = trainer.is_last_batch and (trainer.current_epoch + 1) % self._local_epochs == 0
        if merges and (charge := self._privacy.round_cost()) is not None:
            self._tracker.add(charge)  # before the federated callback, which comes later in the list, merges

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tracker.end()


class _ConstantRate(pl.Callback):
    """Keeps the learning rate at a constant share of the study's initial one, whatever its schedule says."""

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
