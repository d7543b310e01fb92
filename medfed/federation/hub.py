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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medfed.aggregation import State
from medfed.errors import MedfedError, RunError, UpdateError
from medfed.exchange import HubSide, ReceivedUpdate
from medfed.federation.acceptance import EXAMPLES, accept_numbers
from medfed.federation.checkpoints import (
    Checkpoint,
    load_best_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
    save_round,
)
from medfed.federation.config import HubConfig
from medfed.federation.model_selection import NOT_JUDGED, Judged, choice_of, judge, stops
from medfed.federation.round import aggregate_round, log_notes, require_own
from medfed.registry import kind_of
from medfed.runs.rounds import RoundReport, SiteResult
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

log = logging.getLogger("medfed.federation.hub")

RoundCallback = Callable[[RoundReport], None]
ModelCallback = Callable[[GlobalModel], None]


def sample_sites(config: HubConfig, round: int) -> tuple[str, ...]:
    """Return the sites asked to train towards a round, drawn from the study's seed and the round alone."""
    sites = sorted(config.sites)
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
    model, every site first scores the last merged one, and the final model is the best round's (`chosen`).

    Raises:
        QuorumError: if too few sites sent a valid update for a round.
        RuleError: if the rule cannot merge the updates.
        RunError: if the run found in `folder` cannot be resumed, or a checkpoint cannot be written.
    """
    audit = audit or AuditLog(None)
    saved = load_latest_checkpoint(folder, config.study_digest) if folder else None
    if saved is not None:
        saved = _newest(exchange, config, saved, audit)
    # Checkpoints are written in a thread of their own, while the model's chunks already leave.
    with ThreadPoolExecutor(1, thread_name_prefix="medfed-checkpoint") as writer:
        wait_saved: Callable[[], None] = _nothing_to_save
        best, kept = NOT_JUDGED, Kept(folder)
        if saved is None:
            state: State = {**config.rule.init(weights), **config.privacy.init(weights)}
            current = GlobalModel(0, weights, study_digest=config.study_digest)
            if folder is not None:
                wait_saved = writer.submit(save_checkpoint, folder, current, state).result
        else:
            current, state, best = saved
        del weights, saved  # else the first model would stay in memory through the whole study
        report_model = partial(on_model, current)
        while current.chosen is None and current.round < config.rounds and not stops(config.selection, best):
            began = time.monotonic()
            sites = sample_sites(config, current.round + 1)
            current = _addressed(config, current, state, sites)
            size = exchange.publish(current, wait_saved)
            report_model()
            outcome = aggregate_round(exchange, config, state, current, sites, audit)
            best = _judged(config, best, current.round, outcome.results)
            kept.remember(best, current, state)
            current = GlobalModel(current.round + 1, outcome.weights, study_digest=config.study_digest)
            state, results = outcome.state, outcome.results
            del outcome
            if folder is not None:
                wait_saved = writer.submit(save_round, folder, current, state, results, best).result
            results += _not_sampled(config, results)
            report = RoundReport(current.round, results, time.monotonic() - began, size)
            report_model = partial(_report_round, on_model, on_round, current, report)
        merged = current.round
        if current.chosen is not None:
            merged -= 1  # resumed after the choice: the chosen model was published after the last round
        elif config.selection is not None and config.selection.keep == "best":
            began = time.monotonic()
            current = replace(_addressed(config, current, state, ()), scoring=True)
            size = exchange.publish(current, wait_saved)
            report_model()
            results = _collect_scores(config, exchange, current.round + 1, audit, config.sites)
            best = _judged(config, best, current.round, results)
            seconds = time.monotonic() - began
            on_round(RoundReport(current.round + 1, results, seconds, size, scored=current.round))
            current, state = kept.chosen(best, current, state)
            report_model = partial(on_model, current)
            if folder is not None:
                wait_saved = writer.submit(save_checkpoint, folder, current, state, best).result
        choice = None
        if config.selection is not None:
            choice = choice_of(config.selection, best, merged, config.rounds)
            audit.write("chosen", round=choice.round, reason=choice.sentence)
        began = time.monotonic()
        current = replace(current, groups=_broadcast(config, state), classes=config.classes)
        size = exchange.publish(replace(current, participants=(), final=True), wait_saved)
        report_model()
        results = _collect_scores(
            config, exchange, current.round + 1, audit, (*config.sites, *config.evaluating)
        )
        seconds = time.monotonic() - began
        report = RoundReport(current.round + 1, results, seconds, size, current.merges, True, choice)
        on_round(report)
    return current


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
    needed = sorted(group for group in saved.state if group != EXAMPLES)
    if needed or config.selection is not None:
        raise RunError(
            f"{where}. What else this study's checkpoints hold "
            f"({', '.join(needed) or 'the best model so far'}) was not published; restore the newest copy "
            "of the run folder, or start a new run (--out)"
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


def _nothing_to_save() -> None:
    pass


def _report_round(
    on_model: ModelCallback, on_round: RoundCallback, current: GlobalModel, report: RoundReport
) -> None:
    on_model(current)
    on_round(report)


def _addressed(config: HubConfig, current: GlobalModel, state: State, sites: Sequence[str]) -> GlobalModel:
    """Return the model with the sites that are asked to train it further, and what the rule sends along."""
    participants = None if len(sites) == len(config.sites) else tuple(sites)
    return replace(
        current,
        participants=participants,
        groups=_broadcast(config, state),
        classes=config.classes,
        rule=kind_of(config.rule),
        needs_local=config.rule.needs_local,
        needs_scalars=config.rule.needs_scalars,
    )


def _broadcast(config: HubConfig, state: State) -> dict[str, Weights]:
    names = (*config.rule.broadcast, *config.privacy.broadcast)
    return {name: state[name] for name in names if name in state}


def _not_sampled(config: HubConfig, results: Sequence[SiteResult]) -> tuple[SiteResult, ...]:
    asked = {result.site for result in results}
    return tuple(SiteResult(site, "not sampled") for site in sorted(config.sites) if site not in asked)


def _collect_scores(
    config: HubConfig, exchange: HubSide, round: int, audit: AuditLog, asked: Sequence[str]
) -> tuple[SiteResult, ...]:
    """Collect the scores of a model that nobody trains any further from each site that is asked."""
    sites = sorted(set(asked))
    results = [_reported(arrival, round) for arrival in exchange.collect(round, sites, config.deadline_s)]
    for result in results:
        audit.write(result.status, site=result.site, round=round, bytes=result.bytes_up, reason=result.reason)
        log_notes(result, round, audit)
    answered = {result.site for result in results}
    results += [SiteResult(site, "absent", "it reported nothing") for site in sites if site not in answered]
    return tuple(sorted(results, key=lambda result: result.site))


def _reported(arrival: ReceivedUpdate, round: int) -> SiteResult:
    """Return what a site reported on the final model, if that is numbers alone, and its own."""
    try:
        update = require_own(arrival, round)
        if not update.evaluation_only:
            raise UpdateError(f"{update}: holds weights; only scores of the final model are expected")
        update, notes = accept_numbers(update)
    except MedfedError as error:
        status = "absent" if arrival.update is None else "refused"
        return SiteResult(arrival.site, status, str(error), 0, arrival.bytes_up)
    return SiteResult(
        arrival.site, "reported", "", 0, arrival.bytes_up, arrival.seconds, update.scalars, notes
    )
