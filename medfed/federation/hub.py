"""The hub of a whole study: which sites are asked in each round, when a round is over, and how a run resumes.

The hub's own checkpoint is what a run resumes from. It is on disk before any site can take a round's model
(whose bytes may already be on their way), so after a kill -9 of any party the study goes on from the last
merged round. One round's exchange and merge are in `round.py`.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from medfed.aggregation import State
from medfed.errors import ExchangeError, MedfedError, QuorumError, RunError, UpdateError
from medfed.exchange import AwaitsReturn, HubSide, ReceivedUpdate, SupportsJoining
from medfed.federation.acceptance import EXAMPLES, accept_numbers
from medfed.federation.averaging import AVERAGE, averaged
from medfed.federation.checkpoints import (
    Checkpoint,
    forget_report,
    keep_report,
    load_best_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
    save_round,
    unrecorded_report,
)
from medfed.federation.config import HubConfig
from medfed.federation.membership import record_joins, recorded_joins
from medfed.federation.model_selection import (
    NOT_JUDGED,
    Judged,
    choice_of,
    judge,
    mean_of_rounds,
    stops,
    unjudged,
)
from medfed.federation.postprocessing import CHOICE, choice_group, choose_rules, sentence_of
from medfed.federation.round import RoundOutcome, aggregate_round, log_results, require_own
from medfed.privacy import NoPrivacy
from medfed.registry import kind_of
from medfed.runs.rounds import RoundReport, SiteResult
from medfed.study.averaging import averages, first_averaged
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

log = logging.getLogger("medfed.federation.hub")

RoundCallback = Callable[[RoundReport], None]
ModelCallback = Callable[[GlobalModel], None]


def sample_sites(config: HubConfig, round: int) -> tuple[str, ...]:
    """Return the sites asked to train towards a round, drawn from the study's seed and the round alone."""
    sites = sorted(config.sites_in(round))
    if config.rule.max_sites == 1:  # the model goes from site to site, in turn
        return (sites[(round - 1) % len(sites)],)
    count = max(config.minimum, math.ceil(config.fraction * len(sites) - 1e-9))
    if count >= len(sites):
        return tuple(sites)
    return tuple(sorted(random.Random(f"{config.seed}/sampling/{round}").sample(sites, count)))


def run_hub(
    config: HubConfig,
    exchange: HubSide,
    weights: Weights,
    *,
    folder: Path | None = None,
    on_round: RoundCallback = lambda report: None,
    on_model: ModelCallback = lambda current: None,
    audit: AuditLog | None = None,
) -> GlobalModel:
    """Run every round of a study and return its final model.

    `weights` are those of the untrained model. With a `folder`, each merged round is saved there, and a run
    found there is resumed. `on_round` is called after each round, `on_model` with each model including the
    untrained one, both once the model is on disk and published. Where `config.selection` keeps the best
    model, every site first scores the last merged one, and the final model is the best round's (`chosen`);
    likewise before components to remove are chosen (`config.structures`).

    Raises:
        QuorumError: if too few sites sent a valid update for a round.
        RuleError: if the rule cannot merge the updates.
        RunError: if the run found in `folder` cannot be resumed, or a checkpoint cannot be written.
    """
    audit = audit or AuditLog(None)
    # Checkpoints are written in a thread of their own, while the model's chunks already leave.
    with ThreadPoolExecutor(1, thread_name_prefix="medfed-checkpoint") as writer:
        saved = load_latest_checkpoint(folder, config.study_digest) if folder else None
        if saved is not None and folder is not None and config.joining:
            for site, joined in recorded_joins(folder).items():
                config = config.joined_by([site], joined)
        start = _untrained(config, weights) if saved is None else _newest(exchange, config, saved, audit)
        study = _Study(config, exchange, folder, audit, writer, on_round, on_model, *start)
        if saved is None:
            study.save(save_checkpoint)
        del weights, saved, start  # else the first model would stay in memory through the whole study
        while study.goes_on:
            study.train_round()
        if config.scores_last:
            study.choose()
        study.finish()
    return study.current


@dataclass
class _Study:
    """A study at its hub: the model, the rule's state and the best model so far, and what is told of them.

    wait_saved: returns once the current model is on disk.  report: tells what is to be told of the current
    model, once it is published.
    """

    config: HubConfig
    exchange: HubSide
    folder: Path | None
    audit: AuditLog
    writer: ThreadPoolExecutor
    on_round: RoundCallback
    on_model: ModelCallback
    current: GlobalModel
    state: State
    best: Judged = NOT_JUDGED
    wait_saved: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        self._kept = Kept(self.folder)
        self._mean = self.state.get(AVERAGE)
        self.state = {group: kept for group, kept in self.state.items() if group != AVERAGE}
        self._report = partial(self.on_model, self.current)
        kept = None if self.folder is None else unrecorded_report(self.folder, self.current.round)
        if kept is not None:  # the hub was killed after this round's checkpoint
            self._report = partial(self._record, self.current, kept)

    @property
    def goes_on(self) -> bool:
        """Whether another round is to be trained."""
        current = self.current
        ended = current.chosen is not None or current.round >= self.config.rounds
        return not ended and not stops(self.config.selection, self.best)

    def save(self, write: Callable[..., None], *what: Any) -> None:
        """Write the current model to the hub's folder, if there is one, while the study goes on."""
        if self.folder is not None:
            state = self.state if self._mean is None else {**self.state, AVERAGE: self._mean}
            self.wait_saved = self.writer.submit(write, self.folder, self.current, state, *what).result

    def publish(self, model: GlobalModel) -> int:
        """Publish a model once it is on disk, and tell of it; return its bytes."""
        shown = replace(model, audit_head=self.audit.head)
        size = self.exchange.publish(shown, self.wait_saved)
        self._report()
        return size

    def train_round(self) -> None:
        """Publish the model, and merge what the sites that are asked have trained from it."""
        self.take_in_joined()
        config, began = self.config, time.monotonic()
        sites = sample_sites(config, self.current.round + 1)
        self.current = _addressed(config, self.current, self.state, sites)
        size = self.publish(self.current)
        outcome = self._aggregate(sites)
        self.best = _judged(config, self.best, self.current.round, outcome.results)
        self._kept.remember(self.best, self.current, self.state)
        number = self.current.round + 1
        weights, self._mean = averaged(
            outcome.weights, self._mean, round=number, rounds=config.rounds, average=config.average
        )
        self.current = GlobalModel(number, weights, study_digest=config.study_digest)
        self.state, results = outcome.state, outcome.results
        del outcome, weights
        results += _not_sampled(config, results, number)
        report = RoundReport(number, results, time.monotonic() - began, size)
        self.save(_save_round, report, self.best)
        self._report = partial(self._record, self.current, report)

    def take_in_joined(self) -> None:
        """Ask the sites that have joined since the last round, too, from the next one on."""
        config, number = self.config, self.current.round + 1
        if not config.joining:
            return
        if not isinstance(self.exchange, SupportsJoining):
            raise ExchangeError(
                "this study lets sites join while it runs, which this exchange does not carry; across "
                "machines take 'nats' or 'folder', in one process give the rounds (HubConfig.joins)"
            )
        new = sorted({*self.exchange.joined_sites()} - {*config.sites, *config.evaluating})
        if not new:
            return
        self.config = config.joined_by(new, number)
        if self.folder is not None:
            record_joins(self.folder, self.config.joins)
        self.audit.write("joined", round=number, sites=new)
        log.warning("hub: %s joins the study; it trains from round %d on", ", ".join(new), number)

    def _aggregate(self, sites: Sequence[str]) -> RoundOutcome:
        """Collect and merge a round; with too few sites left, wait until one that stopped comes back."""
        config = self.config
        while True:
            try:
                return aggregate_round(self.exchange, config, self.state, self.current, sites, self.audit)
            except QuorumError as error:
                if not isinstance(self.exchange, AwaitsReturn) or not config.return_s:
                    raise
                if not self.exchange.wait_for_return(
                    self.current.round + 1, sites, config.return_s, str(error)
                ):
                    raise

    def _record(self, current: GlobalModel, report: RoundReport) -> None:
        """Tell of a round's model and of the round."""
        self.on_model(current)
        self.on_round(report)
        if self.folder is not None:
            forget_report(self.folder)

    def choose(self) -> None:
        """Have every site score the last model, and make the final one the current one, with what is chosen.

        It is the best round's where the study keeps that, else the last.
        """
        if self.current.chosen is not None:
            return  # resumed after the choice
        config, began = self.config, time.monotonic()
        self.current = replace(_addressed(config, self.current, self.state, ()), scoring=True)
        size = self.publish(self.current)
        number = self.current.round + 1
        results = _collect_scores(config, self.exchange, number, self.audit, config.sites)
        self.best = _judged(config, self.best, self.current.round, results)
        seconds = time.monotonic() - began
        self.on_round(RoundReport(number, results, seconds, size, scored=self.current.round))
        best = self.best if config.keeps_best else NOT_JUDGED
        self.current, self.state = self._kept.chosen(best, self.current, self.state)
        if config.structures:
            self._choose_components(results)
        self._report = partial(self.on_model, self.current)
        self.save(save_checkpoint, self.best)

    def _choose_components(self, results: Sequence[SiteResult]) -> None:
        """Choose which components are removed, by what the sites measured; the final model carries it."""
        sent = {one.site: one.scalars for one in results if one.status == "reported"}
        rules, gains = choose_rules(sent, self.config.structures)
        self.audit.write("postprocess", reason=sentence_of(rules, gains))
        log.info("hub: %s", sentence_of(rules, gains))
        self.state = {**self.state, CHOICE: choice_group(rules, self.config.structures)}

    def finish(self) -> None:
        """Publish the final model and collect the sites' scores of it."""
        config, choice = self.config, None
        if config.selection is not None:
            # A chosen model is published after the last round, as one more.
            merged = self.current.round - (self.current.chosen is not None)
            choice = choice_of(config.selection, self.best, merged, config.rounds)
            self.audit.write("chosen", round=choice.round, reason=choice.sentence)
            if not choice.best:
                log.warning("hub: %s", unjudged(config.selection, max(1, config.minimum)))
        elif averages(config.average):
            choice = mean_of_rounds(config.average, config.rounds)
            self.audit.write("averaged", round=choice.round, reason=choice.sentence)
        began = time.monotonic()
        groups = _broadcast(config, self.state)
        groups |= {CHOICE: self.state[CHOICE]} if config.structures else {}
        self.current = replace(self.current, groups=groups, classes=config.classes)
        size = self.publish(replace(self.current, participants=(), final=True))
        number, sites = self.current.round + 1, (*config.sites, *config.evaluating)
        results = _collect_scores(config, self.exchange, number, self.audit, sites)
        seconds = time.monotonic() - began
        self.on_round(RoundReport(number, results, seconds, size, self.current.merges, True, choice))


def _untrained(config: HubConfig, weights: Weights) -> Checkpoint:
    """Return what a new run begins with."""
    state: State = {**config.rule.init(weights), **config.privacy.init(weights)}
    return Checkpoint(GlobalModel(0, weights, study_digest=config.study_digest), state)


def _newest(exchange: HubSide, config: HubConfig, saved: Checkpoint, audit: AuditLog) -> Checkpoint:
    """Return what to go on from: the checkpoint, or the model that this hub published after it.

    The folder may be a back-up, or its newest checkpoint damaged, and sites accept no older model than they
    have.

    Raises:
        RunError: if the published model lacks what only checkpoints hold: the rule's state, the best model.
    """
    published = exchange.newest_published(saved.model.round)
    if published is None:
        return saved
    where = (
        f"the hub's newest readable checkpoint is of round {saved.model.round}, but it has published the "
        f"model of round {published.round}: the run folder is a back-up, or its newest checkpoint is damaged"
    )
    needed = {group for group in saved.state if group != EXAMPLES}
    if averages(config.average) and published.round >= first_averaged(config.average, config.rounds):
        needed.add(AVERAGE)
    if needed or config.selection is not None:
        raise RunError(
            f"{where}. What else this study's checkpoints hold "
            f"({', '.join(sorted(needed)) or 'the best model so far'}) was not published; restore the newest "
            "copy of the run folder, or start a new run (--out)"
        )
    log.warning("hub: %s; it goes on from the published model", where)
    audit.write("continued", study=config.study_digest, round=published.round, reason=where)
    model = GlobalModel(published.round, dict(published.weights), study_digest=config.study_digest)
    return saved._replace(model=model)


@dataclass
class Kept:
    """The best model so far with the rule's state: on disk where the hub has a folder, else in memory."""

    folder: Path | None
    _best: tuple[GlobalModel, State] | None = None

    def remember(self, best: Judged, current: GlobalModel, state: State) -> None:
        """Keep the current model if it has just become the best one; a folder keeps its checkpoint."""
        if self.folder is None and best.round and best.round == current.round:
            self._best = current, state

    def chosen(self, best: Judged, current: GlobalModel, state: State) -> tuple[GlobalModel, State]:
        """Return the best model, to be published after the last one; the last one where none was judged.

        Raises:
            RunError: if its checkpoint is missing.
        """
        number, study = current.round + 1, current.study_digest
        if best.round in (0, current.round):
            return GlobalModel(number, current.weights, study_digest=study, chosen=current.round), state
        if self.folder is not None:
            model, state, _ = load_best_checkpoint(self.folder, best, study)
        else:
            assert self._best is not None
            model, state = self._best
        return GlobalModel(number, model.weights, study_digest=study, chosen=best.round), state


def _judged(config: HubConfig, best: Judged, round: int, results: Sequence[SiteResult]) -> Judged:
    """Return the best model so far, after the sites' scores of this round's model."""
    selection = config.selection
    if selection is None:
        return best
    return judge(selection, best, round, selection.scores_in(results), config.minimum)


def _save_round(folder: Path, current: GlobalModel, state: State, report: RoundReport, best: Judged) -> None:
    """Write a merged round's report and then its checkpoint, so that no round is missing in the record."""
    keep_report(folder, report)
    save_round(folder, current, state, report.results, best)


def _addressed(config: HubConfig, current: GlobalModel, state: State, sites: Sequence[str]) -> GlobalModel:
    """Return the model with the sites that are asked to train it further, and what the rule sends along."""
    # Where sites may join, one that is here already does not train before it is asked.
    everybody = len(sites) == len(config.sites) and not config.changes_sites
    participants = None if everybody else tuple(sites)
    return replace(
        current,
        participants=participants,
        groups=_broadcast(config, state),
        classes=config.classes,
        rule=kind_of(config.rule),
        needs_local=config.rule.needs_local,
        needs_scalars=config.rule.needs_scalars,
        privacy="" if isinstance(config.privacy, NoPrivacy) else kind_of(config.privacy),
        asynchronous=config.rule.asynchronous,
    )


def _broadcast(config: HubConfig, state: State) -> dict[str, Weights]:
    names = (*config.rule.broadcast, *config.privacy.broadcast)
    return {name: state[name] for name in names if name in state}


def _not_sampled(config: HubConfig, results: Sequence[SiteResult], round: int) -> tuple[SiteResult, ...]:
    asked, sites = {result.site for result in results}, sorted(config.sites_in(round))
    return tuple(SiteResult(site, "not sampled") for site in sites if site not in asked)


def _collect_scores(
    config: HubConfig, exchange: HubSide, round: int, audit: AuditLog, asked: Sequence[str]
) -> tuple[SiteResult, ...]:
    """Collect the scores of a model that nobody trains any further from each site that is asked."""
    sites = sorted(set(asked))
    arrivals = exchange.collect(round, sites, config.deadline_s)
    results: list[SiteResult] = []
    for arrival in arrivals:
        results += log_results([_reported(arrival, round, audit)], round, audit)
    answered = {result.site for result in results}
    missing = [SiteResult(site, "absent", "it reported nothing") for site in sites if site not in answered]
    results += log_results(missing, round, audit)
    return tuple(sorted(results, key=lambda result: result.site))


def _reported(arrival: ReceivedUpdate, round: int, audit: AuditLog) -> SiteResult:
    """Return what a site reported on the final model, if that is numbers alone, and its own."""
    try:
        update = require_own(arrival, round, audit)
        if not update.evaluation_only:
            raise UpdateError(f"{update}: holds weights; only scores of the final model are expected")
        update, notes = accept_numbers(update)
    except MedfedError as error:
        status = "absent" if arrival.update is None else "refused"
        return SiteResult(arrival.site, status, str(error), 0, arrival.bytes_up)
    return SiteResult(
        arrival.site, "reported", "", 0, arrival.bytes_up, arrival.seconds, update.scalars, notes
    )
