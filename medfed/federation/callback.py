"""The federated Lightning callback, which exchanges any module's weights inside one long `Trainer.fit`.

The place of the merge was measured on Lightning 2.6.6: validation runs before `on_train_epoch_end`, and a
default ModelCheckpoint saves after it, so a merge there would store merged weights under the unmerged
weights' score. Here the merge is in `on_train_batch_end` of the last batch of every E-th epoch, so the same
weights are validated, checkpointed and held by the hub.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from medfed.errors import ExchangeError, StudyError
from medfed.exchange import DropOut, SiteSide, detail_of, reason_of
from medfed.federation.egress import TRAINING, UNDECLARED_OK, Egress, declared_scores, keep_undeclared
from medfed.federation.half_precision import refuse_bfloat16_convolutions
from medfed.federation.progress_bar import replace_progress_bar
from medfed.federation.round import SiteConnection, drop_out, receive, send_update
from medfed.federation.same_model import check_same_model
from medfed.federation.training_seed import derived_seed, seed_epoch, training_seed
from medfed.local_training import LocalMethod, LocalState
from medfed.local_training._lightning import current_step, restore_step, train_evaluator, wrap_step
from medfed.local_training._weights import to_cpu
from medfed.privacy import NoPrivacy, Privacy
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression
from medfed.wire.compression import State as Residual
from medfed.wire.update import GlobalModel, Update, finite_scalars
from medfed.wire.weights import Difference, Weights, load, weights_of

log = logging.getLogger("medfed.federation.callback")


@dataclass(frozen=True)
class CallbackOptions:
    """Options that a study sets on its callback and that a script of your own rarely needs.

    trained_only: whether parameters that don't train (`requires_grad` is False) are left out of the exchange;
        every site must have begun with the same ones.
    egress: what may leave besides the model's tensors; by default the local method's groups, what medfed
        itself reports of training, and the metrics that the module names in its attribute `scores`.
    audit: the log of what is received and sent.
    accountant: called with the round before an update is sent; records what the round costs under
        differential privacy and returns the scalars that report it (`PrivateTraining.commit_round`).
    on_final_model: called with the final model; returns what this site reports of it besides its scores.
    required_scalars: what the study's rule needs besides the weights: `train/loss_before`, the training loss
        of the received model, and `train/class_loss`, its mean over the classes and each class's.
    scalars: numbers that go with each update, such as how many cases the site left out.
    parties: the sites that train in the study to which this one agreed, with which alone it agrees on keys;
        needed by privacy mechanisms with keys, except in a simulation, whose exchange knows them.
    close_at_end: whether the scores of the final model are sent when fit ends; if not, call `close` later.
    """

    trained_only: bool = False
    egress: Egress | None = None
    audit: AuditLog | None = None
    accountant: Callable[[int], dict[str, float]] | None = None
    on_final_model: Callable[[GlobalModel], Mapping[str, float]] | None = None
    required_scalars: Collection[str] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    parties: tuple[str, ...] = ()
    close_at_end: bool = True


class FederatedCallback(pl.Callback):
    """Makes any Trainer one site of a federation, whose weights are merged after every `local_epochs` epochs.

    Args:
        site: this site's name, as the hub knows it.
        exchange: how the site reaches the hub.
        local_epochs: E, the epochs between two merges; the Trainer's max_epochs must be a multiple of it.
        examples: how many training cases this site's weights stand for; by default, the length of the
            training dataset.
        keep_local: names that stay in the hospital: `norm` (FedBN), or a submodule such as `head` (FedPer).
        local: the local method that changes training (FedProx, SCAFFOLD), or None.
        privacy: how an update is protected before it leaves.
        compress: how it is compressed after that; the hub must be given the same compressions.
        optimiser_state: whether the optimiser keeps its moments at a merge or starts anew. With `keep`, a
            single site trains exactly as without federation.
        seed: if given, the random states of Python, NumPy and torch, and of a dataset with
            `set_random_state`, are set from (seed, site, epoch) at the start of every epoch, so that a
            resumed run repeats. Under privacy that shows the hub a sum only, a secret of this site and run
            takes its place: a resumed run repeats, and no other does.
        classes: the names of the model's outputs, in order. They are compared with the hub's, so that two
            models of one shape whose labels mean different things are not merged.
        options: what a study sets in addition.

    Raises:
        StudyError: when fit starts, if max_epochs is not a multiple of local_epochs, or if a convolution
            would be trained in bfloat16 on a CPU, where its gradient is unreliable; or if its tensors,
            their shapes or its classes are not those of the hub's model.
        UpdateError: at a merge, if training has made the weights infinite or NaN.
        ExchangeError: if the hub closed the study.
    """

    def __init__(
        self,
        site: str,
        exchange: SiteSide,
        local_epochs: int = 1,
        *,
        examples: int | None = None,
        keep_local: Iterable[str] = (),
        local: LocalMethod | None = None,
        privacy: Privacy | None = None,
        compress: Sequence[Compression] = (),
        optimiser_state: Literal["keep", "reset"] = "keep",
        seed: int | None = None,
        classes: Sequence[str] = (),
        options: CallbackOptions | None = None,
    ) -> None:
        if local_epochs < 1:
            raise StudyError(f"site '{site}': local_epochs is {local_epochs}, expected 1 or more")
        self._options = options or CallbackOptions()
        method = local or LocalMethod()  # the base leaves training as it is
        self.site = site
        self.round = 0
        # The digest of the model from which this round trains, as it arrived.
        self.model_sha256 = ""
        self.scores: dict[str, float] = {}
        self._connection = SiteConnection(
            site,
            exchange,
            privacy or NoPrivacy(),
            self._options.egress or self._default_egress(method, privacy or NoPrivacy()),
            tuple(compress),
            self._options.audit or AuditLog(None),
            self._options.parties,
        )
        self._local_epochs = local_epochs
        self._examples = examples
        self._classes = tuple(classes)
        self._keep_local = (*keep_local, *method.keep_local())
        self._optimiser_state = optimiser_state
        self._local = method
        self._changes_steps = local is not None
        self._local_state: LocalState = {}
        self._residual: Residual = {}
        self._seed = training_seed(seed, self._connection.privacy)
        self._received: GlobalModel | None = None
        self._merged_now = False
        self._restored = False
        self._undeclared = ""
        self._replaced_bar = False
        self._stop_reason = "its Trainer reached max_epochs before the study's last round"
        self._begin_round()

    # -- where Lightning calls

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._replaced_bar = stage == "fit" and replace_progress_bar(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._replaced_bar and trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.enable()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.max_epochs
        if epochs is None or epochs < 0 or epochs % self._local_epochs:
            raise StudyError(
                f"site '{self.site}': max_epochs is {epochs}, local_epochs is {self._local_epochs}; "
                "max_epochs must be a multiple, else the last epochs would be trained and never merged"
            )
        refuse_bfloat16_convolutions(trainer, pl_module, self.site)
        if self._options.egress is None:
            egress = self._connection.egress
            names = egress.scalars | declared_scores(pl_module, f"site '{self.site}'")
            self._connection = replace(self._connection, egress=replace(egress, scalars=names))
        if trainer.world_size > 1 and self.secret_seed is not None:
            self._seed = trainer.strategy.broadcast(self._seed)
        if self._changes_steps:
            wrap_step(pl_module, lambda module, own: self._local.loss(module, own, self._local_state))
        if self._restored:
            # The checkpoint was written after the model of its round was received, so it holds that model.
            # The hub may be a round further by now; what this site had not kept of that round it trains
            # again, from the same weights, and the hub knows the update already.
            self._restored = False
            self._received = GlobalModel(self.round, self._weights(pl_module), sha256=self.model_sha256)
            if self._connection.privacy.follows_model:
                self._follow(self._fetch(trainer, self.round))
            if not self._local_state:
                self._local_state = self._local.start(pl_module, self._received, {})
            self._begin_round()
            return
        self._join(trainer, pl_module, self.round)
        assert self._received is not None
        trainer.should_stop = self._received.ends_training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch % self._local_epochs == 0:
            self._evaluate_train(trainer, pl_module)
        if self._seed is not None:
            seed_epoch(trainer, self._seed, self.site)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._connection.exchange.closed:
            raise ExchangeError(
                f"site '{self.site}' trains for round {self.round + 1}, but the hub has closed the study"
            )
        if self._changes_steps:
            step = current_step(trainer, pl_module, batch, batch_idx, self._local_epochs)
            self._local_state = self._local.step(step, self._local_state)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._steps += 1
        self._rates += float(optimizer.param_groups[0]["lr"])
        self._local.gradient(pl_module, self._local_state)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach().float())
        if trainer.is_last_batch and (trainer.current_epoch + 1) % self._local_epochs == 0:
            self._merge(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Between two merges validation may score local weights; only a merged model's scores
        # are the federation's.
        if self._merged_now and not trainer.sanity_checking:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            # What training logs under these names is measured by the callback itself.
            scores = {name: value for name, value in metrics.items() if name not in TRAINING}
            self.scores = self._only_declared(finite_scalars(scores))
            self._merged_now = False

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not on_train_end: Lightning leaves that out where a resumed fit has no epoch left to train.
        restore_step(pl_module)
        if self._received is not None and self._received.scoring:
            self._take_chosen(trainer, pl_module)
        if trainer.max_epochs is not None and trainer.current_epoch < trainer.max_epochs:
            self._stop_reason = (
                f"its Trainer stopped in epoch {trainer.current_epoch} of {trainer.max_epochs}, for example "
                "by EarlyStopping, max_steps or max_time, before the study's last round"
            )
        if self._options.close_at_end and trainer.is_global_zero and self._received is not None:
            self.close(self._received)

    def close(self, received: GlobalModel | None = None) -> None:
        """Send the scores of the final model; if the study goes on without this site, drop out instead."""
        received = received or self._received
        assert received is not None
        if received.final:
            on_final_model = self._options.on_final_model
            measured = on_final_model(received) if on_final_model is not None else {}
            # The hub chose this model by scores that it has already.
            scores = {} if received.chosen is not None else self._only_declared(self.scores)
            self._report(received, {**scores, **measured})
        else:
            drop_out(self._connection, DropOut.ENDED, self._stop_reason)

    def report_scores(self, received: GlobalModel) -> GlobalModel:
        """Send this site's scores of the last merged model, and return the one that the hub chooses then."""
        self._report(received, self._only_declared(self.scores))
        return receive(self._connection, received.round + 1)

    def _report(self, received: GlobalModel, scalars: Mapping[str, float]) -> None:
        report = Update(self.site, received.round + 1, {}, 0, scalars)
        # Scores are no tensors: there is nothing to compress.
        send_update(replace(self._connection, compress=()), report, received.weights)

    def _take_chosen(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report the last merged model's scores, and load the model that the hub chooses."""
        assert self._received is not None
        if trainer.is_global_zero:
            self._report(self._received, self._only_declared(self.scores))
        received = self._fetch(trainer, self._received.round + 1)
        load(module, received.weights)
        self._received, self.model_sha256 = received, received.sha256
        self._local_state = self._local.start(module, received, self._local_state)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        restore_step(pl_module)
        # Whoever interrupts a site means to start it again: the hub waits for it as for one that was killed.
        interrupted = isinstance(exception, (KeyboardInterrupt, SystemExit))
        if trainer.is_global_zero and not isinstance(exception, ExchangeError) and not interrupted:
            drop_out(self._connection, reason_of(exception), detail_of(exception))

    def state_dict(self) -> dict[str, Any]:
        # Plain dictionaries: a checkpoint is read without unpickling any other class, such as
        # a lazy mapping's.
        local = {group: dict(tensors) for group, tensors in self._local_state.items()}
        residual = {group: dict(tensors) for group, tensors in self._residual.items()}
        secret = {} if self.secret_seed is None else {"seed": self.secret_seed}
        return {
            "round": self.round,
            "model": self.model_sha256,
            "scores": dict(self.scores),
            "local": local,
            "residual": residual,
            **secret,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.round, self.model_sha256 = state_dict["round"], state_dict["model"]
        self.scores = dict(state_dict["scores"])
        self._local_state = state_dict["local"]
        self._residual = state_dict["residual"]
        self._seed = state_dict.get("seed", self._seed)
        self._restored = True

    @property
    def secret_seed(self) -> str | None:
        """The secret that this run's randomness is derived from, for its checkpoints; None without one."""
        return self._seed if isinstance(self._seed, str) else None

    def restore_final(
        self, module: pl.LightningModule, received: GlobalModel, checkpoint: Mapping[str, Any]
    ) -> None:
        """Load a study's final model, and from this site's last checkpoint what never left."""
        module.load_state_dict(checkpoint["state_dict"])
        self._local_state = checkpoint["callbacks"][self.state_key]["local"]
        load(module, received.weights)
        self._local_state = self._local.start(module, received, self._local_state)

    @property
    def chosen_before_last(self) -> bool:
        """Whether the final model is not the last merged one, of which `scores` are."""
        received = self._received
        return received is not None and received.chosen is not None and received.chosen < received.round - 1

    def personalised_weights(self, module: pl.LightningModule) -> Weights | None:
        """Return the hospital's personalised model, or None if its local method makes none."""
        weights = self._local.personal(module, self._local_state)
        return None if weights is None else to_cpu(weights)

    def resume_from_round(self, round: int, model_sha256: str = "", secret_seed: str | None = None) -> None:
        """Take the module's weights for the hub's model of this round, instead of asking the hub for it.

        `model_sha256` is that model's digest as it arrived, `secret_seed` the former `secret_seed`.
        """
        self.round, self.model_sha256, self._restored = round, model_sha256, True
        self._seed = secret_seed or self._seed

    # -- one round, seen from the site

    def _begin_round(self) -> None:
        self._losses: list[Tensor] = []
        self._steps = 0
        self._rates = 0.0
        self._scalars_before: dict[str, float] = {}
        self._began = time.monotonic()

    def _evaluate_train(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate the received model on the training cases, as the rule and the local method need it."""
        seed = derived_seed(self._seed or 0, self.site, self.round, "look")
        evaluator = train_evaluator(trainer, module, self.site, seed)
        self._scalars_before = {}
        if "train/loss_before" in self._options.required_scalars:
            self._scalars_before["train/loss_before"] = evaluator.loss()
        if "train/class_loss" in self._options.required_scalars:
            losses = finite_scalars(evaluator.class_losses())
            self._scalars_before |= {f"train/class_loss/{name}": value for name, value in losses.items()}
            if losses:
                self._scalars_before["train/class_loss"] = sum(losses.values()) / len(losses)
        self._local_state = self._local.evaluate_train(evaluator, self._local_state)

    def _merge(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Send this round's update and go on from the merged model."""
        assert self._received is not None
        rate = self._rates / max(self._steps, 1)
        self._local_state, groups = self._local.finish(
            module, self._received, self._local_state, self._steps, rate
        )
        if trainer.is_global_zero:
            weights = self._received.weights
            update = Update(
                site=self.site,
                round=self.round + 1,
                delta=Difference(self._weights(module), weights),
                examples=self._count(trainer),
                scalars=self._update_scalars(),
                groups=groups,
            )
            self._residual = send_update(self._connection, update, weights, self._residual, self.model_sha256)
            del update, weights
        for optimizer in trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
            if self._optimiser_state == "reset":
                optimizer.state.clear()
        self._join(trainer, module, self.round + 1)
        self._merged_now = True
        if self._received.ends_training:
            trainer.should_stop = True

    def _update_scalars(self) -> dict[str, float]:
        scalars = {"train/steps": float(self._steps), "train/seconds": time.monotonic() - self._began}
        if self._losses:
            scalars["train/loss"] = float(torch.stack(self._losses).mean())
        if self._steps:
            scalars["train/rate"] = self._rates / self._steps
        measured = finite_scalars(
            {**scalars, **self._scalars_before, **self._local.scalars(self._local_state)}
        )
        accountant = self._options.accountant
        spent = accountant(self.round + 1) if accountant is not None else {}
        return {**self._only_declared(self.scores), **measured, **spent, **self._options.scalars}

    def _default_egress(self, method: LocalMethod, privacy: Privacy) -> Egress:
        """Return what may leave where no study says so: what the parts declare, and what medfed measures."""
        options = self._options
        names = UNDECLARED_OK.union(
            method.reports, privacy.scalars, options.required_scalars, options.scalars
        )
        return Egress(names, groups=method.sends)

    def _only_declared(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the scores that may leave; tell once, in the log and the audit log, that others stay."""
        declared, sentence = keep_undeclared(scores, self._connection.egress.scalars)
        if sentence and sentence != self._undeclared:
            self._undeclared = sentence
            log.warning("site '%s': %s", self.site, sentence)
            self._connection.audit.write("kept", site=self.site, round=self.round, reason=sentence)
        return declared

    def _weights(self, module: pl.LightningModule) -> Weights:
        return weights_of(module, self._keep_local, trained_only=self._options.trained_only)

    def _join(self, trainer: pl.Trainer, module: pl.LightningModule, round: int) -> None:
        """Load the hub's model of this round or later, of a round in which this site is asked to train."""
        received = self._fetch(trainer, round)
        while not received.ends_training and not received.selects(self.site):
            received = self._fetch(trainer, received.round + 1)
        if self._received is None:
            check_same_model(self.site, self._weights(module), received, self._classes)
        load(module, received.weights)
        self._follow(received)
        self._received, self.round, self.model_sha256 = received, received.round, received.sha256
        self._local_state = self._local.start(module, received, self._local_state)
        self._begin_round()

    def _follow(self, received: GlobalModel) -> None:
        """Take for the next update what the hub published beside this model, such as the round's clip."""
        privacy = self._connection.privacy.for_round(received)
        self._connection = replace(self._connection, privacy=privacy)

    def _fetch(self, trainer: pl.Trainer, round: int) -> GlobalModel:
        """Return the hub's model, which rank 0 receives and broadcasts to the hospital's other processes."""
        received = receive(self._connection, round) if trainer.is_global_zero else None
        if trainer.world_size > 1:
            plain: Any = None if received is None else _as_plain_dict(received)
            received = GlobalModel(**trainer.strategy.broadcast(plain))
        assert received is not None
        return received

    def _count(self, trainer: pl.Trainer) -> int:
        if self._examples is not None:
            return self._examples
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        try:
            return len(dataset)  # type: ignore[arg-type]
        except TypeError:
            raise StudyError(
                f"site '{self.site}': the training data has no length, so its examples cannot be counted; "
                f"give FederatedCallback(examples=...)"
            ) from None


def _as_plain_dict(received: GlobalModel) -> dict[str, Any]:
    plain = {"weights": dict(received.weights), "groups": {n: dict(g) for n, g in received.groups.items()}}
    return {**vars(received), **plain}
