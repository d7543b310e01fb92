"""The federated Lightning callback, which exchanges any module's weights inside one long `Trainer.fit`.

The place of the merge was measured on Lightning 2.6.6: validation runs before `on_train_epoch_end`, and a
default ModelCheckpoint saves after it, so a merge there would store merged weights under the unmerged
weights' score. Here the merge is in `on_train_batch_end` of the last batch of every E-th epoch, so the same
weights are validated, checkpointed and held by the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from medfed.errors import ExchangeError, StudyError
from medfed.exchange import DropOut, SiteSide, detail_of, reason_of
from medfed.federation import closing, merged_scores, same_model, within_round
from medfed.federation.acceptance import MAX_GROWTH
from medfed.federation.closing import check_merged, closed_study, fetch_once, fetch_selected, report_numbers
from medfed.federation.config import CallbackOptions, default_egress
from medfed.federation.egress import TRAINING, keep_undeclared, with_declared_scores
from medfed.federation.examples import Pass, count_examples, disagreement
from medfed.federation.half_precision import refuse_bfloat16_convolutions
from medfed.federation.idle_memory import give_up, idle_memory, remembered
from medfed.federation.progress_bar import replace_progress_bar
from medfed.federation.round import SiteConnection, drop_out, receive, send_update
from medfed.federation.training_seed import derived_seed, seed_epoch, training_seed
from medfed.federation.within_round import RoundProgress
from medfed.local_training import LocalMethod, LocalState
from medfed.local_training._lightning import current_step, restore_step, train_evaluator, wrap_step
from medfed.local_training._suitability import (
    changes_gradients,
    changes_loss,
    check_evaluates,
    check_steps,
    check_suits,
    gradients_of,
)
from medfed.local_training._weights import to_cpu
from medfed.privacy import NoPrivacy, Privacy
from medfed.registry import kind_named
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression
from medfed.wire.compression import State as Residual
from medfed.wire.update import GlobalModel, Update, finite_scalars
from medfed.wire.weights import Difference, Weights, load, shared_tensors, weights_of

log = logging.getLogger("medfed.federation.callback")


class FederatedCallback(pl.Callback):
    """Makes any Trainer one site of a federation, whose weights are merged after every `local_epochs` epochs.

    Args:
        site: this site's name, as the hub knows it.
        exchange: how the site reaches the hub.
        local_epochs: E, the epochs between two merges; the Trainer's max_epochs must be a multiple of it.
        examples: how many training cases this site's weights stand for; by default, counted from what
            it trained on (`federation/examples.py`), with which a number given is compared.
        keep_local: names that stay in the hospital: `norm` (FedBN), or a submodule such as `head` (FedPer).
        local: the local method that changes training (FedProx, SCAFFOLD) or its name, or None.
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
        StudyError: when fit starts, if max_epochs is not a multiple of local_epochs, if model, classes or
            method are not the hub's or do not suit the module, or if a convolution would be trained in
            bfloat16 on a CPU, where its gradient is unreliable.
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
        local: LocalMethod | str | None = None,
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
        own = None if local is None else kind_named("local_training", local)
        method: LocalMethod = own or LocalMethod()  # the base leaves training as it is
        self.site = site
        self.round = 0
        # The digest of the model from which this round trains, as it arrived.
        self.model_sha256 = ""
        self.scores: dict[str, float] = {}
        self._connection = SiteConnection(
            site,
            exchange,
            privacy or NoPrivacy(),
            self._options.egress or default_egress(method, privacy or NoPrivacy(), self._options),
            tuple(compress),
            self._options.audit or AuditLog(None),
            self._options.parties,
        )
        self._local_epochs = local_epochs
        self._examples, self._classes = examples, tuple(classes)
        self._keep_local = (*keep_local, *method.keep_local())
        self._optimiser_state = optimiser_state
        self._local, self._own_method = method, own
        self._local_state: LocalState = {}
        self._residual: Residual = {}
        self._seed = training_seed(seed, self._connection.privacy)
        self._received: GlobalModel | None = None
        # The weights on which a validation measures this round's scores, and whether one has or does.
        self._scored_weights: Weights = {}
        self._scored, self._merged_now, self._unscored = True, False, ""
        self._merged_epoch: int | None = -1
        # The tensors whose memory the last update took with it.
        self._given: frozenset[str] | None = None
        self._validation: merged_scores.ForwardWatch | None = None
        self._schedule: merged_scores.Schedule | None = None
        self._pass, self._progress, self._first_count = Pass(), RoundProgress(), 0
        self._restored, self._checks, self._unkept = False, True, False
        self._told: set[str] = set()
        self._replaced_bar, self._stopped = False, ""
        self._checkpoint: Mapping[str, Any] = {}

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
        same_model.refuse_shards(self.site, trainer.strategy)
        same_model.check_merges_elsewhere(self._connection, self._own_method)
        self._tell(same_model.stays_here(pl_module, self._keep_local))
        if self._options.egress is None:
            egress = with_declared_scores(self._connection.egress, pl_module, f"site '{self.site}'")
            self._connection = replace(self._connection, egress=egress)
        if trainer.world_size > 1 and self.secret_seed is not None:
            self._seed = trainer.strategy.broadcast(self._seed)
        if changes_loss(self._local):
            wrap_step(pl_module, lambda module, own: self._local.loss(module, own, self._local_state))
        if self._restored:
            self._resume(trainer, pl_module)
            return
        if self._received is not None:  # a second fit: scores of the first are not of the model now received
            self.scores, self._scored = {}, True
        self._checks = True
        trainer.should_stop = self._join(trainer, pl_module, self.round).ends_training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._unkept:
            within_round.refuse_inside(trainer, self.site, self._local_epochs)
            self._unkept = False
        check_suits(self._own_method, trainer, pl_module, self.site)
        check_evaluates(self._options.required_scalars, pl_module, self.site)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch % self._local_epochs == 0:
            self._evaluate_train(trainer, pl_module)
        if self._seed is not None:
            seed_epoch(trainer, self._seed, self.site)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._connection.exchange.closed:
            raise closed_study(self.site, self.round + 1)
        if batch_idx == 0:
            self._merged_epoch, trained = -1, self._received if self._options.trained_only else None
            starts = not self._progress.under_way and not self._local.module_is_personal
            own = self._weights_in(pl_module) if starts or trained is not None else {}
            same_model.check_epoch(self.site, pl_module, trainer.optimizers, own, trained)
            if starts:
                self._tell(same_model.other_start(own, self._received))
        if self._own_method is not None:
            step = current_step(trainer, pl_module, batch, batch_idx, self._local_epochs)
            self._local_state = self._local.step(step, self._local_state)
        self._progress.under_way = True

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._progress.add_step(optimizer)
        if changes_gradients(self._local):
            with gradients_of(optimizer, pl_module):
                self._local.gradient(pl_module, self._local_state)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._progress.add_loss(outputs)
        self._pass = (self._pass if batch_idx else Pass()).after(batch)
        if not self._progress.steps:
            check_steps(self._own_method, pl_module, self._received, self.site)
        if trainer.is_last_batch and (trainer.current_epoch + 1) % self._local_epochs == 0:
            self._merge(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_merged(trainer, self.site, self._local_epochs, self._merged_epoch)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Here and not where a validation starts: callbacks that average weights put theirs in in between.
        if batch_idx == 0 and dataloader_idx == 0 and merged_scores.measures(trainer):
            own, watch = self._weights_in(pl_module), merged_scores.ForwardWatch
            self._validation = watch(pl_module, own, self._scored_weights)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watch, self._validation = self._validation, None
        if watch is not None and not watch.ends():
            self._unscored = merged_scores.OTHER_WEIGHTS if self._merged_now else self._unscored
        elif watch is not None:  # what training logs under these names, the callback itself measures
            scores = merged_scores.validated_scores(trainer, without=TRAINING)
            self.scores, self._scored = self._only_declared(scores), True
            logged = self._connection.egress.scalars & {*trainer.callback_metrics} - TRAINING
            self._tell(merged_scores.only_trained(logged - {*scores}))
        self._merged_now = False

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        restore_step(pl_module)  # not on_train_end: a resumed fit with no epoch left to train has none
        if self._schedule is not None:
            merged_scores.restore_schedule(trainer, self._schedule)
            self._schedule = None
            self._tell_unscored(trainer)
        if self._received is not None and self._received.scoring:
            self._take_chosen(trainer, pl_module, self._received)
        self._stopped = closing.stop_reason(trainer)
        if self._options.close_at_end and trainer.is_global_zero and self._received is not None:
            self.close(self._received)

    def close(self, received: GlobalModel | None = None) -> None:
        """Send the scores of the final model; if the study goes on without this site, drop out instead."""
        received = received or self._received
        assert received is not None
        if received.final:
            measure = self._options.on_final_model
            measured = {} if measure is None else measure(received)
            # The hub chose a model by its scores, which it has.
            scores = self._only_declared(self.scores) if received.chosen is None else {}
            report_numbers(self._connection, received, {**scores, **measured})
        else:
            drop_out(self._connection, DropOut.ENDED, self._stopped)

    def report_scores(self, received: GlobalModel) -> GlobalModel:
        """Send this site's scores of the last merged model, and return the one that the hub chooses then."""
        report_numbers(self._connection, received, self._last_numbers())
        return receive(self._connection, received.round + 1)

    def _last_numbers(self) -> dict[str, float]:
        measure = self._options.on_last_model
        return {**self._only_declared(self.scores), **({} if measure is None else measure())}

    def _take_chosen(self, trainer: pl.Trainer, module: pl.LightningModule, last: GlobalModel) -> None:
        """Report the last merged model's scores, and load the model that the hub chooses."""
        if trainer.is_global_zero:
            report_numbers(self._connection, last, self._last_numbers())
        self._received = received = fetch_once(trainer, self._connection, last.round + 1)
        load(module, received.weights)
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
        # Plain dictionaries: a checkpoint is read without unpickling any other class (a lazy mapping's).
        local = {group: dict(tensors) for group, tensors in self._local_state.items()}
        residual = {group: dict(tensors) for group, tensors in self._residual.items()}
        secret = {} if self.secret_seed is None else {"seed": self.secret_seed}
        within: dict[str, Any] = {}
        if self._received is not None and (self._progress.under_way or self._local.module_is_personal):
            within = {"within": within_round.kept_of(self._progress, self._received.weights, self._pass)}
        return {
            "round": self.round,
            "model": self.model_sha256,
            "scores": dict(self.scores),
            "local": local,
            "residual": residual,
            "accelerator": within_round.names_on_accelerator(self._local_state),
            "examples": self._first_count,
            **within,
            **secret,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.round, self.model_sha256 = state_dict["round"], state_dict["model"]
        self.scores = dict(state_dict["scores"])
        self._local_state = state_dict["local"]
        self._residual = state_dict["residual"]
        self._seed = state_dict.get("seed", self._seed)
        self._first_count = state_dict.get("examples", 0)
        self._checkpoint, self._restored = state_dict, True

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
        """Whether the final model is an earlier round's than the last one, of which `scores` are."""
        return closing.chosen_before_last(self._received)

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

    def _resume(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Go on in the round of a checkpoint, from the model that the round began with.

        The hub may be a round further by now; what this site had not kept of its round it trains again, from
        the same weights, and the hub knows the update already.
        """
        checkpoint, self._checkpoint = self._checkpoint, {}
        kept, own = checkpoint.get("within"), self._weights(module)
        self._restored, self._unkept = False, kept is None
        # A checkpoint without a kept model was written before the round's first step: the module holds it.
        weights = within_round.received_of(kept, self.site, self.round) if kept else own
        self._received = GlobalModel(self.round, weights, classes=self._classes, sha256=self.model_sha256)
        same_model.check_same_model(self.site, own, self._received, self._classes)
        self._scored_weights = own if self._local.module_is_personal else weights
        if self._connection.privacy.follows_model:
            self._follow(fetch_once(trainer, self._connection, self.round))
        if self._local_state:
            there = checkpoint.get("accelerator", {})
            self._local_state = within_round.on_device(self._local_state, there, module.device)
        else:
            self._local_state = self._local.start(module, self._received, {})
        self._progress, self._pass = within_round.progress_of(kept) if kept else (RoundProgress(), Pass())
        if not self._progress.under_way:  # it may have been written between a merge and its epoch's end
            self._merged_epoch = None

    def _evaluate_train(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate the received model on the training cases, as the rule and the local method need it."""
        seed = derived_seed(self._seed or 0, self.site, self.round, "look")
        evaluator = train_evaluator(trainer, module, self.site, seed)
        self._progress.measure_before(evaluator, self._options.required_scalars)
        self._local_state = self._local.evaluate_train(evaluator, self._local_state)

    def _merge(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Send this round's update and go on from the merged model."""
        assert self._received is not None
        steps, rate = self._progress.steps, self._progress.mean_rate
        self._local_state, groups = self._local.finish(module, self._received, self._local_state, steps, rate)
        self._merged_epoch = trainer.current_epoch
        self._tell_unscored(trainer)
        self._tell(same_model.kept_copies(trainer.optimizers, self._optimiser_state))
        examples = self._count(trainer, module)  # all processes take part
        if trainer.is_global_zero:
            weights = self._received.weights
            sent = self._weights_in(module)
            own, self._given = give_up(self._connection.exchange, module, sent, weights)
            scalars, delta = self._update_scalars(), Difference(own, weights)
            update = Update(self.site, self.round + 1, delta, examples, scalars, groups)
            self._residual = send_update(self._connection, update, weights, self._residual, self.model_sha256)
            del update, weights, own, sent, delta
        for optimizer in trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
            if self._optimiser_state == "reset":
                optimizer.state.clear()
        received = self._join(trainer, module, self.round + 1)
        self.scores, self._scored, self._merged_now, self._unscored = {}, False, True, ""
        if received.ends_training:
            trainer.should_stop = True
            self._schedule = merged_scores.validate_after_this_batch(trainer)

    def _update_scalars(self) -> dict[str, float]:
        measured = finite_scalars({**self._progress.scalars(), **self._local.scalars(self._local_state)})
        accountant = self._options.accountant
        spent = accountant(self.round + 1) if accountant is not None else {}
        return {**self._only_declared(self.scores), **measured, **spent, **self._options.scalars}

    def _only_declared(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the scores that may leave; tell once, in the log and the audit log, that others stay."""
        declared, sentence = keep_undeclared(scores, self._connection.egress.scalars)
        if self._tell(sentence):
            self._connection.audit.write("kept", site=self.site, round=self.round, reason=sentence)
        return declared

    def _tell(self, sentence: str) -> bool:
        """Log what a person at this site should know, once; return whether it was logged."""
        if not sentence or sentence in self._told:
            return False
        self._told.add(sentence)
        log.warning("site '%s': %s", self.site, sentence)
        return True

    def _tell_unscored(self, trainer: pl.Trainer) -> None:
        if trainer.enable_validation and not self._scored:
            self._tell(merged_scores.unscored(self._unscored))

    @property
    def _reported(self) -> frozenset[str]:
        """The names of the numbers that go with each update."""
        own = (self._local.reports, self._connection.privacy.scalars)
        return TRAINING.union(*own, self._options.required_scalars, self._options.scalars)

    def _weights_in(self, module: pl.LightningModule) -> Weights:
        return shared_tensors(module, self._keep_local, trained_only=self._options.trained_only)

    def _weights(self, module: pl.LightningModule) -> Weights:
        return weights_of(module, self._keep_local, trained_only=self._options.trained_only)

    def _join(self, trainer: pl.Trainer, module: pl.LightningModule, round: int) -> GlobalModel:
        """Load the hub's model of this round or later, of a round in which this site trains; return it."""
        given, self._given = self._given, None
        with idle_memory(self._connection.exchange, module, self._received, given):
            self._received, self._scored_weights = remembered(self._connection.exchange, self._received), {}
            received = fetch_selected(trainer, self._connection, round)
        if self._checks:
            same_model.check_same_model(self.site, self._weights_in(module), received, self._classes)
            same_model.check_own_module(self._connection, module, received.weights)
            same_model.check_method(self._connection, self._own_method, self._reported, received)
            self._checks = False
        load(module, received.weights)
        self._follow(received)
        self._received, self.round, self.model_sha256 = received, received.round, received.sha256
        self._local_state = self._local.start(module, received, self._local_state)
        self._scored_weights = self._weights(module) if self._local.module_is_personal else received.weights
        self._progress = RoundProgress()
        return received

    def _follow(self, received: GlobalModel) -> None:
        """Take for the next update what the hub published beside this model, such as the round's clip."""
        privacy = self._connection.privacy.for_round(received)
        self._connection = replace(self._connection, privacy=privacy)

    def _count(self, trainer: pl.Trainer, module: pl.LightningModule) -> int:
        """Return the examples of this round's update: those given, else those counted."""
        if self._options.examples_in is not None:
            return self._options.examples_in(self.round + 1)
        counted = count_examples(trainer, module, self._pass)
        self._tell(disagreement(self._examples, counted))
        # The hub takes more than this for a mistake or a lie; a sampler may draw unequally many cases.
        self._first_count = self._first_count or counted
        most = int(self._first_count * MAX_GROWTH)
        return min(counted, most) if self._examples is None else self._examples
